"""server.chunks: AUTOMATIC1111's `tokenize_line` worked out by hand, on the tokenizer of the embedded checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.chunks import Chunk, Chunked, chunk
from server.prompt import BREAK, Fragment, parse_emphasis

CHECKPOINT = Path(__file__).resolve().parents[2] / "export" / "embedded" / "checkpoint"
START, END, COMMA = 1000, 1001, 999


class RealVocabulary:
    """CLIP's tokenizer as transformers has it."""

    length = 77

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.start: int = tokenizer.bos_token_id
        self.end: int = tokenizer.eos_token_id
        self.pad: int = tokenizer.pad_token_id
        self.comma: int | None = tokenizer.get_vocab().get(",</w>")

    def words(self, text: str) -> Sequence[int]:
        found: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return found

    def padded(self, text: str) -> list[int]:
        """A chunk as diffusers' pipelines have it."""
        found: list[int] = self._tokenizer(text, padding="max_length", max_length=77, truncation=True).input_ids
        return found


class Counting:
    """Token i for the word "i", and a comma."""

    start, end, pad, comma = START, END, END, COMMA

    def __init__(self, length: int = 77) -> None:
        self.length = length

    def words(self, text: str) -> Sequence[int]:
        return [COMMA if word == "," else int(word) for word in text.split()]


@pytest.fixture(scope="module")
def real() -> RealVocabulary:
    from transformers import CLIPTokenizer

    return RealVocabulary(CLIPTokenizer.from_pretrained(CHECKPOINT / "tokenizer"))


def tokens(part: Chunk, end: int = END) -> list[int]:
    """What is between start and end."""
    ids: list[int] = part.ids.tolist()
    return ids[1 : ids.index(end)]


def counted(*places: int | str) -> list[Fragment]:
    """One fragment of the tokens 0, 1, 2, ... of which those at the places are commas; the last place is the count."""
    *commas, count = places
    return [Fragment(" ".join("," if place in commas else str(place) for place in range(int(count))), 1.0)]


def cut(fragments: Sequence[Fragment], **options: int) -> list[list[int]]:
    return [tokens(part) for part in chunk(fragments, Counting(), **options).chunks]


def sizes(fragments: Sequence[Fragment], **options: int) -> list[int]:
    return [len(part) for part in cut(fragments, **options)]


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        " ",
        "a red circle on a blue background",
        "  A RED   Circle,\non a blue background.  ",
        "caf\u00e9 \U0001f642 1,000",
        "red, " * 37,
        "a" * 75,
        "! " * 75,
    ],
)
def test_a_plain_prompt_has_the_ids_that_transformers_gives(real: RealVocabulary, prompt: str) -> None:
    expected = real.padded(prompt)
    found = chunk(parse_emphasis(prompt), real)
    (part,) = found.chunks
    assert part.ids.tolist() == expected
    assert part.ids.dtype == np.int32
    assert part.weights.tolist() == [1.0] * 77
    assert part.weights.dtype == np.float32
    assert (found.used, found.dropped) == (len(real.words(prompt)), 0)


def test_each_fragment_is_tokenized_on_its_own(real: RealVocabulary) -> None:
    """A word that is cut by a bracket is two words."""
    (part,) = chunk(parse_emphasis("ci(rc:1.5)le circle"), real).chunks
    expected = [*real.words("ci"), *real.words("rc"), *real.words("le circle")]
    assert tokens(part, real.end) == expected
    assert expected != [*real.words("circle circle")]
    first, second = len(real.words("ci")), len(real.words("ci")) + len(real.words("rc"))
    weights = part.weights.tolist()
    assert weights == [1.0] * (1 + first) + [1.5] * (second - first) + [1.0] * (76 - second)


def test_weights_are_the_tokens_own_and_1_elsewhere() -> None:
    (part,) = chunk([Fragment("1 2", 0.5), Fragment("3", 2.0)], Counting(8)).chunks
    assert part.ids.tolist() == [START, 1, 2, 3, END, END, END, END]
    assert part.weights.tolist() == [1, 0.5, 0.5, 2, 1, 1, 1, 1]


def test_padding_is_the_tokenizers_own() -> None:
    """Stable Diffusion 2 pads with another token than the end of the text."""
    vocabulary = Counting(8)
    vocabulary.pad = 7
    (part,) = chunk([Fragment("1 2", 1.0)], vocabulary).chunks
    assert part.ids.tolist() == [START, 1, 2, END, 7, 7, 7, 7]


@pytest.mark.parametrize("fragments", [[], [Fragment("", 1.0)], [Fragment(" ", 1.3), Fragment("", 0.0)]])
def test_an_empty_prompt_is_one_empty_chunk(fragments: list[Fragment]) -> None:
    found = chunk(fragments, Counting(8))
    (part,) = found.chunks
    assert part.ids.tolist() == [START, *[END] * 7]
    assert part.weights.tolist() == [1.0] * 8
    assert (found.used, found.dropped) == (0, 0)


@pytest.mark.parametrize(("count", "expected"), [(75, [75]), (76, [75, 1]), (150, [75, 75]), (151, [75, 75, 1])])
def test_without_commas_chunks_are_filled(count: int, expected: list[int]) -> None:
    assert sizes(counted(count)) == expected
    assert [token for part in cut(counted(count)) for token in part] == list(range(count))


@pytest.mark.parametrize(
    ("commas", "count", "expected"),
    [
        # The comma at 55 is the 20th from the end of the chunk: the 19 tokens after it move. The one at 54 is too far.
        ([55], 76, [56, 20]),
        ([54], 76, [75, 1]),
        # The last comma counts, and a full chunk that nothing follows stays.
        ([60, 70], 76, [71, 5]),
        ([70], 75, [75]),
        # Right at the end nothing is left to move; a comma that begins the next chunk is taken to it.
        ([74], 76, [75, 1]),
        ([70, 75], 77, [75, 2]),
        # A comma that began a chunk is not gone back to (73 tokens after it, but never noted); one after it is.
        ([75], 151, [75, 75, 1]),
        ([75, 140], 151, [75, 66, 10]),
        # What moved counts for the next chunk: 20 tokens and 55 more fill it.
        ([55], 131, [56, 75]),
        ([55], 132, [56, 75, 1]),
        ([55, 120], 132, [56, 65, 11]),
    ],
)
def test_a_full_chunk_ends_after_a_near_comma(commas: list[int], count: int, expected: list[int]) -> None:
    parts = cut(counted(*commas, count))
    assert [len(part) for part in parts] == expected
    assert [token for part in parts for token in part] == [n if n not in commas else COMMA for n in range(count)]


@pytest.mark.parametrize(("reach", "expected"), [(0, [75, 1]), (4, [75, 1]), (5, [71, 5]), (200, [71, 5])])
def test_how_far_a_comma_may_be_is_an_option(reach: int, expected: list[int]) -> None:
    assert sizes(counted(70, 76), comma_reach=reach) == expected


def test_a_comma_before_a_break_is_forgotten() -> None:
    fragments = [*counted(70, 72), BREAK, *counted(76)]
    assert sizes(fragments) == [72, 75, 1]


def test_weights_move_with_their_tokens() -> None:
    fragments = [Fragment(" ".join(map(str, range(70))) + " ,", 1.0), Fragment("100 101 102 103 104", 1.5)]
    first, second = chunk(fragments, Counting()).chunks
    assert tokens(second) == [100, 101, 102, 103, 104]
    assert first.weights.tolist() == [1.0] * 77
    assert second.weights.tolist() == [1.0] + [1.5] * 5 + [1.0] * 71


@pytest.mark.parametrize(
    ("fragments", "expected"),
    [
        ([*counted(3), BREAK, *counted(2)], [3, 2]),
        ([BREAK, *counted(2)], [0, 2]),
        ([*counted(3), BREAK, BREAK, *counted(2)], [3, 0, 2]),
        ([*counted(3), BREAK], [3]),
        ([BREAK], [0]),
        ([*counted(75), BREAK, *counted(2)], [75, 2]),
    ],
)
def test_break_ends_a_chunk(fragments: list[Fragment], expected: list[int]) -> None:
    assert sizes(fragments) == expected


@pytest.mark.parametrize(
    ("count", "limit", "chunks", "used", "dropped"), [(600, 8, 8, 600, 0), (601, 8, 8, 600, 1), (200, 1, 1, 75, 125)]
)
def test_what_does_not_fit_is_counted(count: int, limit: int, chunks: int, used: int, dropped: int) -> None:
    found = chunk(counted(count), Counting(), max_chunks=limit)
    assert (len(found.chunks), found.used, found.dropped) == (chunks, used, dropped)


@pytest.mark.parametrize(
    ("count", "whole", "expected"), [(7, 8, [70, 7]), (8, 8, [75, 3]), (7, 0, [75, 2]), (5, 8, [75])]
)
def test_short_fragments_may_be_kept_whole(count: int, whole: int, expected: list[int]) -> None:
    """As ComfyUI keeps those of fewer than 8 tokens."""
    assert sizes([*counted(70), *counted(count)], whole=whole, comma_reach=0) == expected


def test_a_vocabulary_without_a_comma_never_goes_back() -> None:
    vocabulary = Counting()
    vocabulary.comma = None  # type: ignore[assignment]
    assert [len(tokens(part)) for part in chunk(counted(70, 76), vocabulary).chunks] == [75, 1]


ids = st.integers(0, 99) | st.just(COMMA)
pieces = st.lists(st.lists(ids, max_size=30) | st.none(), max_size=12)


@given(pieces, st.integers(3, 20), st.integers(0, 25), st.integers(1, 4), st.integers(0, 9))
@settings(max_examples=200, deadline=None, database=None)
def test_no_token_is_lost_or_moved(
    parts: list[list[int] | None], length: int, reach: int, limit: int, whole: int
) -> None:
    fragments = [
        BREAK if part is None else Fragment(" ".join("," if token == COMMA else str(token) for token in part), 0.5)
        for part in parts
    ]
    options = {"comma_reach": reach, "whole": whole}
    everything: Chunked = chunk(fragments, Counting(length), max_chunks=1000, **options)
    assert [token for part in everything.chunks for token in tokens(part)] == [t for part in parts for t in part or []]
    assert (everything.used, everything.dropped) == (sum(len(part or []) for part in parts), 0)
    for part in everything.chunks:
        size = len(tokens(part))
        assert part.ids.tolist() == [START, *tokens(part), *[END] * (length - 1 - size)]
        assert part.weights.tolist() == [1.0, *[0.5] * size, *[1.0] * (length - 1 - size)]
    some = chunk(fragments, Counting(length), max_chunks=limit, **options)
    kept = everything.chunks[:limit]
    assert [part.ids.tolist() for part in some.chunks] == [part.ids.tolist() for part in kept]
    assert some.used + some.dropped == everything.used
    assert some.used == sum(len(tokens(part)) for part in kept)
