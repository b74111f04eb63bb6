"""server.tokenizer against CLIP's tokenizer in transformers."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.errors import ArtefactError
from server.chunks import Chunked, chunk
from server.prompt import Fragment
from server.tokenizer import PromptTokenizer

LENGTH = 77
START, END = "<|startoftext|>", "<|endoftext|>"
PROMPTS = [
    "",
    " ",
    "\n\t  \r\n",
    "a red circle on a blue background",
    "A RED Circle   on\ta\nblue\u00a0background",
    "  leading and trailing  ",
    "a red circle, on: a (blue) [background]!? -- 'quoted' \"twice\" #1 @home 100% ~x~ a/b\\c {d} <e>",
    "don't can't we've i'm she'll he'd it's 'S 'LL",
    "12345 3.14 1,000,000 2024-01-01 x2 4k 8K 1st",
    "café naïve Ångström São Tomé e\u0301 n\u0303 ﬁne",
    "Größe STRASSE straße İstanbul ıssız ΣΊΣΥΦΟΣ",
    "красный круг на синем фоне",
    "蓝色背景上的红色圆圈 赤い丸 빨간 원",
    "دائرة حمراء على خلفية زرقاء עיגול אדום",
    "🙂 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 a red🔴circle",
    "\u200bzero\u200dwidth\ufeff \u2028line\u2029 \x00null\x7f \u202eright to left",
    "½ ² Ⅷ ① ٣ ५ 𝒶𝓫 ＡＢＣ",
    "supercalifragilisticexpialidocious_with_underscores__and__more",
    "&amp; &lt;b&gt; <br/> http://example.org/?q=a&b=c",
    "a red circle<|endoftext|>and more",
    "<|startoftext|> in the middle <|endoftext|>",
    "(a:1.2) [b] ((c)) {d|e} <lora:x:0.8> AND BREAK",
    "a" * 200,
    "! " * 74,
    "! " * 75,
    "! " * 76,
    "red circle " * 60,
    "🙂" * 100,
]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP tokenizer as a checkpoint has it."""
    from export.embedded.vocabulary import write_tokenizer

    folder = tmp_path_factory.mktemp("checkpoint") / "tokenizer"
    write_tokenizer(folder)
    return folder


def exported(vocabulary: Path, folder: Path) -> Path:
    """The tokenizer as an export has it."""
    from export.checkpoint import Checkpoint
    from export.export import write_tokenizer

    write_tokenizer(Checkpoint(vocabulary.parent, "tests/tokenizer"), folder)
    return folder


@pytest.fixture(scope="module")
def folder(vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(vocabulary, tmp_path_factory.mktemp("export") / "tokenizer")


@pytest.fixture(scope="module")
def oracle(vocabulary: Path) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(vocabulary)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PromptTokenizer:
    return PromptTokenizer(folder, LENGTH)


def padded(oracle: Any, prompt: str, length: int = LENGTH) -> list[int]:
    """What diffusers gives its text encoder."""
    ids: list[int] = oracle(prompt, padding="max_length", max_length=length, truncation=True).input_ids
    return ids


def plain(tokenizer: PromptTokenizer, prompt: str) -> Chunked:
    """The one chunk of a prompt without a syntax."""
    return chunk([Fragment(prompt, 1.0)], tokenizer, max_chunks=1, comma_reach=0)


def ids_of(tokenizer: PromptTokenizer, prompt: str) -> list[int]:
    (only,) = plain(tokenizer, prompt).chunks
    ids: list[int] = only.ids.tolist()
    return ids


@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_words_equal_transformers(tokenizer: PromptTokenizer, oracle: Any, prompt: str) -> None:
    assert tokenizer.words(prompt) == oracle(prompt, add_special_tokens=False).input_ids


@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_one_chunk_of_a_plain_prompt_equals_transformers(tokenizer: PromptTokenizer, oracle: Any, prompt: str) -> None:
    found = plain(tokenizer, prompt)
    assert ids_of(tokenizer, prompt) == padded(oracle, prompt)
    assert [part.ids.dtype for part in found.chunks] == [np.int32]
    assert all((part.weights == 1).all() for part in found.chunks)
    words = len(oracle(prompt, add_special_tokens=False).input_ids)
    assert (found.used, found.dropped) == (min(words, LENGTH - 2), max(words - (LENGTH - 2), 0))


def test_special_tokens_and_the_comma_are_those_of_transformers(tokenizer: PromptTokenizer, oracle: Any) -> None:
    assert [tokenizer.start, tokenizer.end] == oracle.convert_tokens_to_ids([START, END])
    assert tokenizer.pad == oracle.pad_token_id
    assert [tokenizer.comma] == oracle(",", add_special_tokens=False).input_ids
    assert tokenizer.comma in tokenizer.words("red, blue")
    assert tokenizer.length == LENGTH


def test_a_vocabulary_without_a_comma_has_none(folder: Path, tmp_path: Path) -> None:
    """One that spells a comma in two tokens has nothing to cut after."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    made = Tokenizer(models.BPE({START: 0, END: 1, **{c: i + 2 for i, c in enumerate(",abc")}, "x": 6}, []))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    for name, normal in (("one", ","), ("two", "ab")):
        changed = Path(shutil.copytree(folder, tmp_path / name))
        made.normalizer = normalizers.Replace(",", normal)
        made.save(str(changed / "tokenizer.json"))
    assert PromptTokenizer(tmp_path / "one", LENGTH).comma == 2
    assert PromptTokenizer(tmp_path / "two", LENGTH).comma is None


@pytest.mark.parametrize(("words", "used", "dropped"), [(0, 0, 0), (1, 1, 0), (75, 75, 0), (76, 75, 1), (500, 75, 425)])
def test_what_does_not_fit_is_dropped_from_the_end_and_counted(
    tokenizer: PromptTokenizer, oracle: Any, words: int, used: int, dropped: int
) -> None:
    found = plain(tokenizer, "red " * words)
    assert (found.used, found.dropped) == (used, dropped)
    start, end = oracle.convert_tokens_to_ids([START, END])
    (word,) = oracle("red", add_special_tokens=False).input_ids
    assert ids_of(tokenizer, "red " * words) == [start, *[word] * used, *[end] * (LENGTH - 1 - used)]


@pytest.mark.parametrize("length", [8, 64])
def test_a_chunk_has_the_context_length_of_the_checkpoint(folder: Path, oracle: Any, length: int) -> None:
    prompt = "a red circle on a blue background, twice and thrice"
    ids = ids_of(PromptTokenizer(folder, length), prompt)
    assert ids == padded(oracle, prompt, length)
    assert len(ids) == length


def test_padding_is_the_checkpoints_own(vocabulary: Path, tmp_path: Path) -> None:
    """Stable Diffusion 2 pads with "!", not with the end of the text."""
    from transformers import CLIPTokenizer

    other = tmp_path / "checkpoint" / "tokenizer"
    shutil.copytree(vocabulary, other)
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        config = json.loads((other / name).read_text(encoding="utf-8"))
        (other / name).write_text(json.dumps({**config, "pad_token": "!"}), encoding="utf-8")
    oracle = CLIPTokenizer.from_pretrained(other)
    tokenizer = PromptTokenizer(exported(other, tmp_path / "export"), LENGTH)
    for prompt in ("", "a red circle", "wow! a star !"):
        assert ids_of(tokenizer, prompt) == padded(oracle, prompt)
    assert ids_of(tokenizer, "a red circle")[-1] == tokenizer.pad == oracle.convert_tokens_to_ids("!")


def test_a_stored_limit_of_the_tokenizer_file_changes_nothing(folder: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    changed = shutil.copytree(folder, tmp_path / "tokenizer")
    inner = Tokenizer.from_file(str(folder / "tokenizer.json"))
    inner.enable_truncation(4)
    inner.enable_padding(length=9)
    inner.save(str(changed / "tokenizer.json"))
    prompt = "a red circle on a blue background"
    usual, limited = (PromptTokenizer(where, LENGTH).words(prompt) for where in (folder, changed))
    assert usual == limited
    assert len(limited) == 7


@pytest.mark.parametrize("file", ["tokenizer.json", "config.json"])
@pytest.mark.parametrize("content", [None, "", "{", "[]", '"text"', '{"start": 3}', "\udcff"])
def test_a_missing_or_damaged_file_is_an_artefact_error(
    folder: Path, tmp_path: Path, file: str, content: str | None
) -> None:
    broken = shutil.copytree(folder, tmp_path / "tokenizer")
    if content is None:
        (broken / file).unlink()
    else:
        (broken / file).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ArtefactError, match="python -m export") as caught:
        PromptTokenizer(broken, LENGTH)
    assert str(broken) in str(caught.value)


def test_a_special_token_that_is_not_in_the_vocabulary_is_named(folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(folder, tmp_path / "tokenizer")
    (broken / "config.json").write_text(json.dumps({"start": START, "end": END, "pad": "<|nothing|>"}))
    with pytest.raises(ArtefactError, match=r"lacks.*nothing.*python -m export"):
        PromptTokenizer(broken, LENGTH)


def test_a_folder_that_is_not_there_is_an_artefact_error(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="nowhere"):
        PromptTokenizer(tmp_path / "nowhere", LENGTH)
