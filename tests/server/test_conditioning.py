"""server.conditioning: which texts each call is conditioned on, with how many rows and how strongly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.conditioning import Array, Condition, Text, conditions, fragments, guided_calls, wordings
from server.fields import PROMPT_SYNTAXES
from tests.fakes import make_request

A1111 = ("a1111", "a1111_no_norm", "a1111_ignore")
PLAIN = ("none", "comfy", "compel")


class Embeddings(dict[Text, Array]):
    """States for any text, made when first asked for."""

    def __missing__(self, text: Text) -> Array:
        self[text] = np.full((77, 2), len(self), np.float32)
        return self[text]


def conditioned(calls: int, embeddings: Mapping[Text, Array] | None = None, /, **fields: Any) -> tuple[Condition, ...]:
    said = wordings(make_request(**fields), calls)
    return conditions(said, Embeddings() if embeddings is None else embeddings)


def said_by_call(calls: int, **fields: Any) -> list[str]:
    """The prompt's text of each call; for prompts of one part."""
    found = [wording.positives for wording in wordings(make_request(**fields), calls)]
    assert {len(positives) for positives in found} == {1}
    return [positives[0][0].text for positives in found]


def rows(calls: int, **fields: Any) -> list[int]:
    return [condition.rows for condition in conditioned(calls, **fields)]


@pytest.mark.parametrize("syntax", PROMPT_SYNTAXES)
@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_a_plain_prompt_has_one_condition_for_all_calls(syntax: str, scale: float) -> None:
    embeddings = Embeddings()
    fields = {"prompt": "a cat", "negative_prompt": "a dog", "prompt_syntax": syntax, "guidance_scale": scale}
    found = conditioned(9, embeddings, **fields)
    assert len(found) == 9
    assert all(condition is found[0] for condition in found)
    assert [text.text for text in embeddings] == (["a cat", "a dog"] if scale > 1 else ["a cat"])
    states = list(embeddings.values())
    assert len(found[0].positives) == 1
    assert found[0].positives[0] is states[0]
    assert found[0].negative is (states[1] if scale > 1 else None)
    assert found[0].scales == (scale,)
    assert found[0].rows == len(states)


def test_an_empty_negative_prompt_is_a_text_like_any_other() -> None:
    (wording,) = set(wordings(make_request(prompt="a cat"), 3))
    assert wording.texts == [Text("a cat", "none", 0), Text("", "none", 0)]


@pytest.mark.parametrize(
    ("start", "end", "calls", "expected"),
    [
        (0.0, 1.0, 4, [2, 2, 2, 2]),
        (0.0, 0.5, 4, [2, 2, 1, 1]),
        (0.5, 1.0, 4, [1, 1, 2, 2]),
        (0.25, 0.75, 4, [1, 2, 2, 1]),
        (0.3, 0.7, 10, [1, 1, 1, 2, 2, 2, 2, 1, 1, 1]),
        (0.0, 0.5, 5, [2, 2, 2, 1, 1]),
        (0.0, 0.01, 4, [2, 1, 1, 1]),
        (0.9, 1.0, 4, [1, 1, 1, 1]),
        (0.0, 0.5, 1, [2]),
    ],
)
def test_outside_the_guidance_interval_there_is_one_row(
    start: float, end: float, calls: int, expected: list[int]
) -> None:
    assert rows(calls, guidance_start=start, guidance_end=end) == expected
    assert rows(calls, guidance_start=start, guidance_end=end, guidance_scale=1.0) == [1] * calls


@pytest.mark.parametrize("calls", [5, 10, 20, 30, 50, 100])
def test_ends_that_came_in_single_precision_mean_the_calls_that_were_meant(calls: int) -> None:
    """Tensors of clients are FP32, where 0.3 is 0.30000001192092896."""
    for tenths in range(1, 10):
        before = -(-calls * tenths // 10)
        part = float(np.float32(tenths / 10))
        expected = [False] * before + [True] * (calls - before)
        assert guided_calls(make_request(guidance_start=part), calls) == expected
        assert guided_calls(make_request(guidance_end=part), calls) == [not guided for guided in expected]


def test_unguided_calls_have_the_same_prompt_at_scale_1() -> None:
    found = conditioned(4, guidance_start=0.5, guidance_scale=6.0)
    assert [condition.scales for condition in found] == [(1.0,), (1.0,), (6.0,), (6.0,)]
    assert {id(condition.positives[0]) for condition in found} == {id(found[0].positives[0])}
    assert [id(condition) for condition in found] == [id(found[0])] * 2 + [id(found[2])] * 2


@pytest.mark.parametrize("syntax", A1111)
def test_parts_of_a_composition_have_a_row_each_and_share_the_negative_one(syntax: str) -> None:
    embeddings = Embeddings()
    fields = {"prompt": "a cat AND a dog :0.5 AND fog:-1", "negative_prompt": "ink", "guidance_scale": 8.0}
    found = conditioned(3, embeddings, prompt_syntax=syntax, **fields)
    assert [text.text.strip() for text in embeddings] == ["a cat", "a dog", "fog", "ink"]
    *positives, negative = embeddings.values()
    assert all(one is other for one, other in zip(found[0].positives, positives, strict=True))
    assert found[0].negative is negative
    assert found[0].scales == (8.0, 4.0, -8.0)
    assert (found[0].rows, len({id(condition) for condition in found})) == (4, 1)


def test_a_composition_has_its_negative_row_even_where_it_is_not_guided() -> None:
    fields = {"prompt": "a cat AND a dog :0.5", "prompt_syntax": "a1111"}
    (alone,) = conditioned(1, **fields, guidance_scale=1.0)
    assert (alone.rows, alone.scales) == (3, (1.0, 0.5))
    assert alone.negative is not None
    assert rows(4, **fields, guidance_end=0.5) == [3, 3, 3, 3]
    scales = [condition.scales for condition in conditioned(4, **fields, guidance_end=0.5, guidance_scale=6.0)]
    assert scales == [(6.0, 3.0)] * 2 + [(1.0, 0.5)] * 2


@pytest.mark.parametrize("syntax", A1111)
@pytest.mark.parametrize(
    ("prompt", "calls", "expected"),
    [
        ("[cat:dog:0.5]", 6, ["cat"] * 3 + ["dog"] * 3),
        ("[cat:dog:2]", 6, ["cat"] * 2 + ["dog"] * 4),
        ("[cat:2] x", 4, [" x"] * 2 + ["cat x"] * 2),
        ("[cat::2]x", 4, ["catx"] * 2 + ["x"] * 2),
        ("[cat|dog]", 5, ["cat", "dog", "cat", "dog", "cat"]),
        ("[a|b|c]", 4, ["a", "b", "c", "a"]),
        ("[cat:dog:0.5]", 1, ["dog"]),
        ("[cat:dog:9]", 3, ["cat"] * 3),
        ("[cat:[dog:owl:4]:2]", 5, ["cat"] * 2 + ["dog"] * 2 + ["owl"]),
    ],
)
def test_a_prompt_changes_at_the_right_call(syntax: str, prompt: str, calls: int, expected: list[str]) -> None:
    assert said_by_call(calls, prompt=prompt, prompt_syntax=syntax) == expected


def test_calls_that_say_the_same_share_their_condition() -> None:
    found = conditioned(6, prompt="[cat|dog]", prompt_syntax="a1111")
    assert [id(condition) for condition in found] == [id(found[0]), id(found[1])] * 3
    assert found[0] is not found[1]
    assert found[0].negative is found[1].negative


def test_the_negative_prompt_changes_too_but_only_where_it_is_heard() -> None:
    fields = {"prompt": "x", "negative_prompt": "[cat:dog:2]", "prompt_syntax": "a1111"}
    heard = [wording.negative for wording in wordings(make_request(**fields), 4)]
    assert [text and text.text for text in heard] == ["cat", "cat", "dog", "dog"]
    late = wordings(make_request(**fields, guidance_start=0.5), 4)
    assert [text and text.text for text in (wording.negative for wording in late)] == [None, None, "dog", "dog"]
    assert len({id(condition) for condition in conditioned(4, **fields, guidance_scale=1.0)}) == 1


def test_each_part_of_a_composition_changes_by_itself() -> None:
    found = wordings(make_request(prompt="[a:b:1] AND [c|d] :2", prompt_syntax="a1111", guidance_scale=3.0), 3)
    texts = [[(text.text.strip(), scale) for text, scale in wording.positives] for wording in found]
    assert texts == [[("a", 3.0), ("c", 6.0)], [("b", 3.0), ("d", 6.0)], [("b", 3.0), ("c", 6.0)]]


@pytest.mark.parametrize("syntax", PLAIN)
@pytest.mark.parametrize("prompt", ["a AND b :2", "[a:b:0.5]", "[a|b]", "a: 3"])
def test_other_syntaxes_know_neither_composition_nor_schedules(syntax: str, prompt: str) -> None:
    fields = {"prompt": prompt, "negative_prompt": prompt, "prompt_syntax": syntax, "guidance_scale": 5.0}
    (wording,) = set(wordings(make_request(**fields), 4))
    assert wording.positives == ((Text(prompt, syntax, 0), 5.0),)
    assert wording.negative == Text(prompt, syntax, 0)


@pytest.mark.parametrize("syntax", PROMPT_SYNTAXES)
def test_without_a_syntax_clip_skip_is_for_the_positive_prompt_only(syntax: str) -> None:
    (wording,) = wordings(make_request(prompt="x", negative_prompt="y", prompt_syntax=syntax, clip_skip=2), 1)
    assert [text.clip_skip for text, _ in wording.positives] == [2]
    assert wording.negative is not None
    assert wording.negative.clip_skip == (0 if syntax == "none" else 2)


@pytest.mark.parametrize(
    ("text", "syntax", "expected"),
    [
        ("(x:1.5) [y] z++", "none", [("(x:1.5) [y] z++", 1.0)]),
        *(("(x:1.5) y", syntax, [("x", 1.5), (" y", 1.0)]) for syntax in A1111),
        *(("((x:1.5) y)", syntax, [("x", 1.5 * 1.1), (" y", 1.1)]) for syntax in A1111),
        ("((x:1.5) y)", "comfy", [("x", 1.5), (" y", 1.1)]),
        ("[y]", "comfy", [("[y]", 1.0)]),
        ("x++ y", "compel", [("x", 1.1**2), ("y", 1.0)]),
    ],
)
def test_each_syntax_has_its_own_emphasis(text: str, syntax: str, expected: list[tuple[str, float]]) -> None:
    found = fragments(text, syntax)
    assert [piece.text for piece in found] == [piece for piece, _ in expected]
    assert [piece.weight for piece in found] == pytest.approx([weight for _, weight in expected])


def test_only_a1111_breaks_chunks() -> None:
    assert [piece.ends_chunk for piece in fragments("a BREAK b", "a1111")] == [False, True, False]
    assert not any(piece.ends_chunk for syntax in PLAIN for piece in fragments("a BREAK b", syntax))


PIECES = st.sampled_from(
    ["cat", " ", "AND", " AND ", ":", "0.5", ":-1", "[", "]", "(", ")", "|", "[a|b]", "[a:b:2]", "\\"]
)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    st.lists(PIECES, max_size=12).map("".join),
    st.lists(PIECES, max_size=6).map("".join),
    st.sampled_from(PROMPT_SYNTAXES),
    st.integers(1, 7),
    st.sampled_from([1.0, 5.0]),
)
def test_whatever_a_prompt_says_every_call_has_its_rows(
    prompt: str, negative: str, syntax: str, calls: int, scale: float
) -> None:
    request = make_request(prompt=prompt, negative_prompt=negative, prompt_syntax=syntax, guidance_scale=scale)
    said = wordings(request, calls)
    embeddings = Embeddings()
    found = conditions(said, embeddings)
    assert len(said) == len(found) == calls
    for wording, condition in zip(said, found, strict=True):
        assert len(condition.positives) == len(condition.scales) >= 1
        assert (condition.negative is not None) is (scale > 1 or len(condition.positives) > 1)
        assert condition.rows == len(wording.texts)
    assert {id(condition) for condition in found} == {id(found[said.index(wording)]) for wording in said}
