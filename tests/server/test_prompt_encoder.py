"""server.prompt_encoder with a text encoder that tells what it was fed and counts its calls."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from engines.catalog import Widths, components_of
from engines.component import Arrays, Component
from engines.errors import ProviderError
from engines.profiles import MAX_CHUNKS
from server import prompt_encoder as module
from server.conditioning import Array, Text
from server.errors import InvalidRequest
from server.fields import PROMPT_SYNTAXES
from server.prompt_encoder import ROWS, PromptEncoder
from server.tokenizer import PromptTokenizer

LENGTH, WIDTH = 10, 4
ROOM = LENGTH - 2
WORDS = ["<start>", "<end>", "<unknown>", ",", *"abcdefghijklmnopqrstuvwxyz"]
INPUTS, OUTPUTS = components_of("sd1", "text_to_image", Widths(LENGTH, WIDTH, 4, 4, 8))["text_encoder"]


class TellingRunner:
    """Every state depends on its token, its place, all tokens of its row, and the layers left out."""

    component = Component("text_encoder", "text_encoder.onnx", INPUTS, OUTPUTS)
    provider = "telling"

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.failures: list[Exception] = []

    def infer(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        self.component.bind(feeds)
        if self.failures:
            raise self.failures.pop()
        self.rows.append(len(feeds["input_ids"]))
        return {"last_hidden_state": self.states(feeds["input_ids"], feeds["clip_skip"])}

    @staticmethod
    def states(ids: npt.NDArray[Any], clip_skip: npt.NDArray[Any]) -> Array:
        """(rows, LENGTH, WIDTH)."""
        told = np.empty((*ids.shape, WIDTH), np.float32)
        told[..., 0] = np.sin(ids)
        told[..., 1] = np.cos(np.arange(LENGTH))
        told[..., 2] = ids.sum(axis=1, keepdims=True) / 7
        told[..., 3] = 1 + clip_skip[:, None]
        return told


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PromptTokenizer:
    """A word per letter, and the comma; ten tokens per chunk."""
    folder = tmp_path_factory.mktemp("tokenizer")
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unknown>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"start": "<start>", "end": "<end>", "pad": "<end>"}))
    return PromptTokenizer(folder, LENGTH)


@pytest.fixture
def runner() -> TellingRunner:
    return TellingRunner()


@pytest.fixture
def encoder(runner: TellingRunner, tokenizer: PromptTokenizer) -> PromptEncoder:
    return PromptEncoder(runner, tokenizer)


def text(words: str, syntax: str = "none", clip_skip: int = 0) -> Text:
    return Text(words, syntax, clip_skip)


def told(*chunks: str, clip_skip: int = 0) -> Array:
    """What the runner tells of chunks of these words, one after the other."""
    ids = np.full((len(chunks), LENGTH), WORDS.index("<end>"))
    for row, words in zip(ids, chunks, strict=True):
        found = [WORDS.index(word) for word in words.split()]
        row[: len(found) + 1] = [WORDS.index("<start>"), *found]
    return np.concatenate(TellingRunner.states(ids, np.full(len(chunks), clip_skip)))


def alphabet(count: int) -> list[str]:
    return [WORDS[4 + i % 26] for i in range(count)]


def test_all_texts_are_encoded_in_one_call_and_each_once(encoder: PromptEncoder, runner: TellingRunner) -> None:
    texts = [text("a b"), text("c"), text("a b"), text("")]
    found = encoder.embed(texts)
    assert runner.rows == [3]
    assert list(found) == [text("a b"), text("c"), text("")]
    again = encoder.embed([text(""), text("d e"), text("a b")])
    assert runner.rows == [3, 1]
    assert again[text("a b")].states is found[text("a b")].states
    encoder.embed(texts)
    assert runner.rows == [3, 1]


@pytest.mark.parametrize("syntax", PROMPT_SYNTAXES)
@pytest.mark.parametrize("words", ["", "a", "a b c d e f g h"])
def test_a_plain_prompt_has_the_bits_of_the_text_encoder(encoder: PromptEncoder, syntax: str, words: str) -> None:
    found = encoder.embed([text(words, syntax)])[text(words, syntax)]
    assert found.states.tobytes() == told(words).tobytes()
    assert found.states.dtype == np.float32
    assert (found.used, found.dropped, found.chunks) == (len(words.split()), 0, 1)


def test_many_chunks_are_encoded_in_calls_of_so_many_rows(encoder: PromptEncoder, runner: TellingRunner) -> None:
    words = [f"{one} {other}" for one in WORDS[4:9] for other in WORDS[4:10]]
    found = encoder.embed([text(" ".join(alphabet(20)), "a1111"), *map(text, words)])
    assert runner.rows[:2] == [ROWS, 3 + len(words) - ROWS]
    assert all(np.array_equal(found[text(pair)].states[:LENGTH], told(pair)) for pair in words)


def test_calls_have_no_more_rows_than_the_text_encoder_takes(runner: TellingRunner, tokenizer: PromptTokenizer) -> None:
    encoder = PromptEncoder(runner, tokenizer, rows=4)
    words = [f"a {letter}" for letter in WORDS[4:13]]
    found = encoder.embed([*map(text, words)])
    assert runner.rows == [4, 4, 1]
    assert all(found[text(pair)].states.tobytes() == told(pair).tobytes() for pair in words)


def test_a_prompt_longer_than_the_unet_takes_is_refused(runner: TellingRunner, tokenizer: PromptTokenizer) -> None:
    encoder = PromptEncoder(runner, tokenizer, tokens=(LENGTH, 3 * LENGTH))
    for count in (3 * ROOM, 3 * ROOM + 1):
        long = text(" ".join(alphabet(count)), "a1111")
        if count == 3 * ROOM:
            assert encoder.embed([long, text("a")])[text("a")].states.shape == (3 * LENGTH, WIDTH)
            continue
        with pytest.raises(InvalidRequest) as caught:
            encoder.embed([text("a"), long])
    assert str(caught.value) == (
        "the longest prompt has 4 chunks of 10 tokens, and this server's UNet is compiled for 10 to 30 tokens: "
        "send 1 to 3 chunks, or build its plans with --tokens 10:10:80"
    )
    assert encoder.embed([text("a")])[text("a")].chunks == 1


def test_texts_that_are_too_many_and_too_long_together_are_refused(encoder: PromptEncoder) -> None:
    words = [f"{one} {other}" for one in WORDS[4:10] for other in WORDS[4:10]]
    with pytest.raises(InvalidRequest, match=r"37 texts of up to 3 chunks; send at most 96 chunks"):
        encoder.embed([text(" ".join(alphabet(20)), "a1111"), *map(text, words)])


def test_layers_are_left_out_text_by_text(encoder: PromptEncoder, runner: TellingRunner) -> None:
    texts = [text("a", clip_skip=2), text("a"), text("b", clip_skip=1)]
    found = encoder.embed(texts)
    assert runner.rows == [3]
    for one in texts:
        assert np.array_equal(found[one].states, told(one.text, clip_skip=one.clip_skip))


def test_texts_of_other_syntaxes_are_other_texts(encoder: PromptEncoder) -> None:
    plain, weighted = text("(a:1.5) b"), text("(a:1.5) b", "a1111_no_norm")
    found = encoder.embed([plain, weighted])
    assert not np.array_equal(found[plain].states, found[weighted].states)


def test_what_was_asked_for_longest_ago_is_forgotten(
    encoder: PromptEncoder, runner: TellingRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EMBEDDINGS_KEPT", 3)
    for words in ("a", "b", "c", "a", "d"):
        encoder.embed([text(words)])
    assert runner.rows == [1] * 4
    encoder.embed([text("a"), text("c"), text("d")])
    assert runner.rows == [1] * 4
    encoder.embed([text("b")])
    assert runner.rows == [1] * 5
    encoder.embed([text("c"), text("d")])
    assert runner.rows == [1] * 5
    encoder.embed([text("a")])
    assert runner.rows == [1] * 6


def test_more_texts_than_are_kept_are_all_given(
    encoder: PromptEncoder, runner: TellingRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EMBEDDINGS_KEPT", 2)
    found = encoder.embed([text(words) for words in "abcdefg"])
    assert runner.rows == [7]
    assert all(np.array_equal(found[text(words)].states, told(words)) for words in "abcdefg")


def test_a_failure_is_passed_on_and_nothing_is_kept_of_it(encoder: PromptEncoder, runner: TellingRunner) -> None:
    runner.failures.append(ProviderError("gone"))
    with pytest.raises(ProviderError):
        encoder.embed([text("a")])
    assert np.array_equal(encoder.embed([text("a")])[text("a")].states, told("a"))


def test_without_a_syntax_there_is_one_chunk_and_the_rest_is_counted(
    encoder: PromptEncoder, runner: TellingRunner
) -> None:
    words = alphabet(20)
    found = encoder.embed([text(" ".join(words))])[text(" ".join(words))]
    assert (found.used, found.dropped, found.chunks) == (ROOM, 20 - ROOM, 1)
    assert np.array_equal(found.states, told(" ".join(words[:ROOM])))
    assert runner.rows == [1]


@pytest.mark.parametrize("syntax", [syntax for syntax in PROMPT_SYNTAXES if syntax != "none"])
def test_a_long_prompt_is_its_chunks_one_after_the_other(
    encoder: PromptEncoder, runner: TellingRunner, syntax: str
) -> None:
    # ComfyUI keeps fragments of fewer than 8 tokens whole; this one has more.
    words = alphabet(20)
    long = text(" ".join(words), syntax)
    found = encoder.embed([long])[long]
    assert (found.used, found.dropped, found.chunks) == (20, 0, 3)
    parts = [" ".join(words[i : i + ROOM]) for i in range(0, 20, ROOM)]
    assert found.states.tobytes() == told(*parts).tobytes()
    assert runner.rows == [3]


def test_what_exceeds_all_chunks_is_counted(encoder: PromptEncoder) -> None:
    room = MAX_CHUNKS * ROOM
    long = text(" ".join(alphabet(room + 5)), "a1111")
    found = encoder.embed([long])[long]
    assert (found.used, found.dropped, found.chunks) == (room, 5, MAX_CHUNKS)
    assert found.states.shape == (MAX_CHUNKS * LENGTH, WIDTH)


def test_a1111_goes_back_to_a_comma_and_breaks(encoder: PromptEncoder) -> None:
    cut, broken = text("a b c , d e f g h", "a1111"), text("a BREAK b", "a1111")
    assert np.array_equal(encoder.embed([cut])[cut].states, told("a b c ,", "d e f g h"))
    found = encoder.embed([broken])[broken]
    assert np.array_equal(found.states, told("a", "b"))
    assert (found.used, found.chunks) == (2, 2)


@pytest.mark.parametrize("clip_skip", [0, 2])
def test_shorter_texts_are_filled_up_with_the_empty_one(
    encoder: PromptEncoder, runner: TellingRunner, clip_skip: int
) -> None:
    words = alphabet(20)
    long, middle = text(" ".join(words), "a1111", clip_skip), text(" ".join(words[:9]), "a1111", clip_skip)
    short = text("x", "a1111", clip_skip)
    found = encoder.embed([long, short, middle])
    assert {embedding.states.shape for embedding in found.values()} == {(3 * LENGTH, WIDTH)}
    assert np.array_equal(found[short].states, told("x", "", "", clip_skip=clip_skip))
    assert np.array_equal(found[middle].states, told(" ".join(words[:ROOM]), words[ROOM], "", clip_skip=clip_skip))
    assert [(found[one].used, found[one].chunks) for one in (long, short, middle)] == [(20, 3), (1, 1), (9, 2)]
    assert len(runner.rows) <= 2
    assert list(found) == [long, short, middle]


def test_what_was_filled_up_for_one_request_is_short_for_the_next(encoder: PromptEncoder) -> None:
    long, short = text(" ".join(alphabet(9)), "a1111"), text("x", "a1111")
    encoder.embed([long, short])
    assert np.array_equal(encoder.embed([short])[short].states, told("x"))


SYNTAXES = {"a1111": "(b:1.5) c [d]", "a1111_no_norm": "(b:1.5) c [d]", "comfy": "(b:1.5) c", "compel": "(b)1.5 c"}


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_weights_are_applied_as_their_syntax_says(encoder: PromptEncoder, syntax: str) -> None:
    weighted = text(SYNTAXES[syntax], syntax, 1)
    found = encoder.embed([weighted])[weighted]
    words = "b c d" if "[d]" in weighted.text else "b c"
    states, empty = (told(part, clip_skip=1).astype(np.float64) for part in (words, ""))
    weights = np.ones((LENGTH, 1))
    weights[1] = 1.5
    if "[d]" in weighted.text:
        weights[3] = 1 / 1.1
    scaled = states * weights
    expected = {
        "a1111": scaled * states.mean() / scaled.mean(),
        "a1111_no_norm": scaled,
        "comfy": empty + (states - empty) * weights,
        "compel": empty + (states - empty) * weights,
    }[syntax]
    np.testing.assert_allclose(found.states, expected, rtol=1e-6, atol=1e-7)
    assert found.states.dtype == np.float32
    assert (found.used, found.chunks) == (len(words.split()), 1)


def test_weights_that_are_ignored_leave_the_bits(encoder: PromptEncoder) -> None:
    weighted = text("(b:1.5) c", "a1111_ignore")
    assert encoder.embed([weighted])[weighted].states.tobytes() == told("b c").tobytes()


def test_a_mean_is_restored_chunk_by_chunk_and_text_by_text(encoder: PromptEncoder) -> None:
    words = alphabet(12)
    weighted = text(f"{' '.join(words[:ROOM])} ({' '.join(words[ROOM:])}:1.5)", "a1111")
    company = [text("(x:9)", "a1111"), text("(y z:0.1)", "a1111")]
    found = encoder.embed([weighted, *company])[weighted].states
    alone = PromptEncoder(TellingRunner(), encoder._tokenizer).embed([weighted])[weighted].states
    assert np.array_equal(found, alone)
    first, second = told(" ".join(words[:ROOM])), told(" ".join(words[ROOM:]))
    assert np.array_equal(found[:LENGTH], first)
    assert not np.allclose(found[LENGTH:], second, atol=1e-3)
    assert found[LENGTH:].mean() == pytest.approx(second.mean(), rel=1e-5)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_weighted_texts_share_their_call(encoder: PromptEncoder, runner: TellingRunner, syntax: str) -> None:
    """Only what is weighed against the empty text may need a call for it."""
    encoder.embed([text(SYNTAXES[syntax], syntax), text("a", syntax), text("(e f)", syntax)])
    assert len(runner.rows) <= (2 if syntax in ("comfy", "compel") else 1)
    assert runner.rows[0] == 3
    calls = len(runner.rows)
    encoder.embed([text(f"(z) {SYNTAXES[syntax]}", syntax)])
    assert runner.rows[calls:] == [1]
