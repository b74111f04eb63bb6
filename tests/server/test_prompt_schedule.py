"""server.prompt_schedule against the published examples of AUTOMATIC1111's webui, and against a model of its rules."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.prompt_schedule import parse_schedule

Schedule = list[tuple[int, str]]


def turns(*texts: str) -> Schedule:
    """Ten steps of an alternation."""
    return [(step, texts[(step - 1) % len(texts)]) for step in range(1, 11)]


# `modules/prompt_parser.py`, `get_learned_conditioning_prompt_schedules`, with 10 steps. One published example is not
# here: for `a [{b|d{:.5] c` it expects [[5, 'a  c'], [10, 'a {b|d{ c']], which the webui's own grammar does not give.
DOCTESTS: list[tuple[str, Schedule]] = [
    ("test", [(10, "test")]),
    ("a [b:3]", [(3, "a "), (10, "a b")]),
    ("a [b: 3]", [(3, "a "), (10, "a b")]),
    ("a [[[b]]:2]", [(2, "a "), (10, "a [[b]]")]),
    ("[(a:2):3]", [(3, ""), (10, "(a:2)")]),
    ("a [b : c : 1] d", [(1, "a b  d"), (10, "a  c  d")]),
    ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
    ("a [unbalanced", [(10, "a [unbalanced")]),
    ("a [b:.5] c", [(5, "a  c"), (10, "a b c")]),
    ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
    ("[a|(b:1.1)]", turns("a", "(b:1.1)")),
    ("[fe|]male", turns("female", "male")),
    ("[fe|||]male", turns("female", "male", "male", "male")),
]

# The comment at the head of that file.
LANDSCAPE = (
    "fantasy landscape with a [mountain:lake:0.25] and [an oak:a christmas tree:0.75][ in foreground::0.6]"
    "[ in background:0.25] [shoddy:masterful:0.5]"
)


@pytest.mark.parametrize(("prompt", "expected"), DOCTESTS)
def test_published_examples(prompt: str, expected: Schedule) -> None:
    assert parse_schedule(prompt, 10) == expected


def test_the_published_example_that_the_webui_itself_does_not_give() -> None:
    """A bracket with both `|` and `:` is neither alternation nor schedule, and a `|` outside one is an error."""
    assert parse_schedule("a [{b|d{:.5] c", 10) == [(10, "a [{b|d{:.5] c")]


def test_published_examples_of_the_second_pass() -> None:
    assert parse_schedule("a [b:.5] c", 10, 10) == [(10, "a b c")]
    assert parse_schedule("a [b:1.5] c", 10, 10) == [(5, "a  c"), (10, "a b c")]


def test_the_published_landscape() -> None:
    assert parse_schedule(LANDSCAPE, 100) == [
        (25, "fantasy landscape with a mountain and an oak in foreground shoddy"),
        (50, "fantasy landscape with a lake and an oak in foreground in background shoddy"),
        (60, "fantasy landscape with a lake and an oak in foreground in background masterful"),
        (75, "fantasy landscape with a lake and an oak in background masterful"),
        (100, "fantasy landscape with a lake and a christmas tree in background masterful"),
    ]


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        # With a point: a part of all steps, cut down to a whole one. Without: a step.
        ("0.4", 4),
        ("0.49", 4),
        ("+.5", 5),
        ("0.04", 0),
        ("1.0", 10),
        ("3.", 10),
        ("-0.5", 0),
        ("4", 4),
        ("0", 0),
        ("-2", 0),
        ("12", 10),
        ("1e1", 10),
        ("5e-1", 0),
        (".05e1", 5),
        # A1111 stops with an OverflowError.
        ("1e999", 10),
        ("-1e999", 0),
    ],
)
def test_when(when: str, expected: int) -> None:
    before, after = (expected, "a"), (10, "b")
    schedule = {0: [after], 10: [(10, "a")]}.get(expected, [before, after])
    assert parse_schedule(f"[a:b:{when}]", 10) == schedule
    assert parse_schedule(f"[a:b: {when}\t]", 10) == schedule


# (1.2 - 1) * 10 is a little less than 2, and steps are cut down.
@pytest.mark.parametrize(
    ("when", "expected"), [("12", 2), ("10", 0), ("1.25", 2), ("1.2", 1), ("0.9", 0), ("25", 10), ("2.0", 10)]
)
def test_the_second_pass_counts_on(when: str, expected: int) -> None:
    schedule = {0: [(10, "b")], 10: [(10, "a")]}.get(expected, [(expected, "a"), (10, "b")])
    assert parse_schedule(f"[a:b:{when}]", 10, 10) == schedule


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", [(10, "")]),
        ("[a::3]", [(3, "a"), (10, "")]),
        ("[:a:3]", [(3, ""), (10, "a")]),
        ("[::3]", [(3, ""), (10, "")]),
        ("[:3]", [(3, ""), (10, "")]),
        ("[3:4]", [(4, ""), (10, "3")]),
        ("[a:3:4]", [(4, "a"), (10, "3")]),
        ("[a:b:3][c:d:3]", [(3, "ac"), (10, "bd")]),
        ("[x|]", turns("x", "")),
        ("[|]", turns("", "")),
        ("[[x:y:3]|b]", [(s, ("x" if s <= 3 else "y") if s % 2 else "b") for s in range(1, 11)]),
        ("[x:[a|b]:3]", [(s, "x" if s <= 3 else "ba"[s % 2]) for s in range(1, 11)]),
        # Emphasis stays in the text, and so do escapes.
        ("(a [b:3] c:1.2)", [(3, "(a  c:1.2)"), (10, "(a b c:1.2)")]),
        ("[a [b:3]]", [(3, "[a ]"), (10, "[a b]")]),
        (r"\[a:b:3\] [\]:3]", [(3, r"\[a:b:3\] "), (10, r"\[a:b:3\] \]")]),
        # What is no schedule is text, and what is in it may still be one.
        ("[a:b] [c:3]", [(3, "[a:b] "), (10, "[a:b] c")]),
        ("[a:b:c:3]", [(10, "[a:b:c:3]")]),
        ("[a:(b:3)]", [(10, "[a:(b:3)]")]),
        ("[a:3x]", [(10, "[a:3x]")]),
        ("[a:\u0663]", [(10, "[a:\u0663]")]),
        ("(a:[b:3]:c)", [(3, "(a::c)"), (10, "(a:b:c)")]),
        ("[a [b:3]", [(3, "[a "), (10, "[a b")]),
        ("[a:[b:3]", [(3, "[a:"), (10, "[a:b")]),
        ("a] [b:3]", [(3, "a] "), (10, "a] b")]),
        ("(a [b:3]] c", [(3, "(a ] c"), (10, "(a b] c")]),
        # These have no reading at all: the whole prompt is text.
        ("a | b [c:3]", [(10, "a | b [c:3]")]),
        ("(a|b) [c:3]", [(10, "(a|b) [c:3]")]),
        ("[a|b [c:3]", [(10, "[a|b [c:3]")]),
        ("[a|b:3] [c:3]", [(10, "[a|b:3] [c:3]")]),
        ("[c:3] \\", [(10, "[c:3] \\")]),
        ("[c:3] \\\n", [(10, "[c:3] \\\n")]),
    ],
)
def test_rules(prompt: str, expected: Schedule) -> None:
    assert parse_schedule(prompt, 10) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("[b:3]]", [(3, "]"), (10, "b]")]),
        ("[b:3]::", [(3, "::"), (10, "b::")]),
        ("x [b:3])) z", [(3, "x )) z"), (10, "x b)) z")]),
    ],
)
def test_where_the_webui_picks_at_random_a_schedule_is_read(prompt: str, expected: Schedule) -> None:
    """Its grammar has two readings of these, and which one its parser takes depends on Python's hash seed."""
    assert parse_schedule(prompt, 10) == expected


STEPS = 12
Said = Callable[[int], str]
Case = tuple[str, Said]


def joined(parts: list[Case]) -> Case:
    return "".join(text for text, _ in parts), lambda step: "".join(said(step) for _, said in parts)


def switch(before: Case, after: Case, when: int) -> Case:
    return f"[{before[0]}:{after[0]}:{when}]", lambda step: before[1](step) if step <= when else after[1](step)


def alternation(options: list[Case]) -> Case:
    text = "|".join(option for option, _ in options)
    return f"[{text}]", lambda step: options[(step - 1) % len(options)][1](step)


def emphasis(inner: Case, around: tuple[str, str]) -> Case:
    return around[0] + inner[0] + around[1], lambda step: around[0] + inner[1](step) + around[1]


def plain(text: str) -> Case:
    return text, lambda step: text


words = st.text(" \n,.+-1a\u00e9", max_size=4).map(plain) | st.sampled_from([r"\[", r"\|", r"\\", r"\:"]).map(plain)
brackets = st.sampled_from([("(", ")"), ("(", ":1.2)"), ("[", "]")])


def nested(inner: st.SearchStrategy[Case]) -> st.SearchStrategy[Case]:
    text = st.lists(inner, max_size=3).map(joined)
    return st.one_of(
        text,
        st.builds(switch, text, text, st.integers(1, STEPS + 2)),
        st.lists(text, min_size=2, max_size=3).map(alternation),
        st.builds(emphasis, text, brackets),
    )


@given(st.recursive(words, nested, max_leaves=15))
@settings(max_examples=300, deadline=None, database=None)
def test_every_prompt_that_is_well_formed_is_read_as_it_was_written(case: Case) -> None:
    prompt, said = case
    schedule = parse_schedule(prompt, STEPS)
    ends = [end for end, _ in schedule]
    assert ends == sorted(set(ends))
    assert ends[-1] == STEPS
    found = [next(text for end, text in schedule if step <= end) for step in range(1, STEPS + 1)]
    assert found == [said(step) for step in range(1, STEPS + 1)]


@pytest.mark.parametrize("piece", ["[", "(", "[a:", "[a|", "(a", "]", ")", ":", "|", "\\", "[a|b]", "[a:3]", "x", " "])
def test_long_prompts(piece: str) -> None:
    for prompt in (piece * 5000, piece * 5000 + "]" * 5000, piece * 5000 + ":3]" * 5000, piece * 5000 + ")" * 5000):
        assert parse_schedule(prompt, 4)[-1][0] == 4


def test_a_long_number_is_read_once() -> None:
    digits = "1" * 100_000
    assert parse_schedule(f"[a:b:{digits}x]", 10) == [(10, f"[a:b:{digits}x]")]
    assert parse_schedule(f"[a:b:{digits}]", 10) == [(10, "a")]


def test_depth_has_no_limit() -> None:
    deep = "[a:" * 5000 + "b" + ":3]" * 5000
    assert parse_schedule(deep, 10) == [(3, "a"), (10, "b")]
    assert parse_schedule("(" * 5000 + "[b:3]" + ")" * 5000, 10)[1] == (10, "(" * 5000 + "b" + ")" * 5000)


def check(count: int, seed: int) -> None:
    pieces = [*"[[[]]]():|\\ \nab", "[a:b:", ":3]", ":.5]", ":1e9]", "\u00e9"]
    chosen = random.Random(seed)
    for _ in range(count):
        prompt = "".join(chosen.choices(pieces, k=chosen.randint(0, 40)))
        schedule = parse_schedule(prompt, 3)
        assert [end for end, _ in schedule] in ([3], [1, 3], [2, 3], [1, 2, 3])
        for _, text in schedule:
            rest = iter(prompt)
            assert all(letter in rest for letter in text)


def test_any_text_is_a_prompt() -> None:
    check(2_000, 0)


@pytest.mark.slow
def test_very_many_texts_are_prompts() -> None:
    check(100_000, 1)
