"""server.prompt_dialects against the rules of ComfyUI's and compel's parsers."""

import random

import pytest

from server.prompt import MAX_DEPTH, MAX_WEIGHT, Fragment
from server.prompt_dialects import parse_emphasis_comfy, parse_emphasis_compel

UP, DOWN = 1.1, 0.9


def pairs(fragments: list[Fragment]) -> list[tuple[str, float]]:
    assert not any(fragment.ends_chunk for fragment in fragments)
    return [(fragment.text, fragment.weight) for fragment in fragments]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", [("", 1.0)]),
        ("()", [("", 1.0)]),
        ("a (red) cat", [("a ", 1.0), ("red", UP), (" cat", 1.0)]),
        ("((x))", [("x", 1.0 * UP * UP)]),
        ("(a (b) c)", [("a ", UP), ("b", UP * UP), (" c", UP)]),
        # A number replaces the weight outside, and is itself what brackets inside multiply.
        ("(a (b:0.5):2)", [("a ", 2.0), ("b", 0.5)]),
        ("(a (b):2)", [("a ", 2.0), ("b", 2.0 * UP)]),
        ("(a (b:1.3) c)", [("a ", UP), ("b", 1.3), (" c", UP)]),
        # Anything that Python reads after the last colon is a number; without a text before it, it is none.
        ("(a: 1e1 )(b:-1)(c:1_0)", [("a", 10.0), ("b", -1.0), ("c", 10.0)]),
        ("(a:b:2)(c:)(d:2 e)", [("a:b", 2.0), ("c:", UP), ("d:2 e", UP)]),
        ("(:1.3)", [(":1.3", UP)]),
        ("(a:nan)(a:inf)(a:1e7)", [("a:nan", UP), ("a:inf", UP), ("a:1e7", UP)]),
        # Neighbours stay apart, square brackets, BREAK and other backslashes are text.
        ("(a)(b)", [("a", UP), ("b", UP)]),
        (r"[a] BREAK \\ \n", [(r"[a] BREAK \\ \n", 1.0)]),
        (r"\(a\) (b\):2)", [("(a) ", 1.0), ("b)", 2.0)]),
        # A closing bracket too many makes one opening bracket text.
        ("a) (b) (c)", [("a) (b) (c)", 1.0)]),
        ("a) (b (c)", [("a) (b ", 1.0), ("c", UP)]),
        # What is never closed is text, unless it ends in a bracket.
        ("a (b c", [("a ", 1.0), ("(b c", 1.0)]),
        ("a (b (c) d", [("a ", 1.0), ("(b (c) d", 1.0)]),
        ("((a:1.3)", [("(a", 1.3)]),
    ],
)
def test_comfy(prompt: str, expected: list[tuple[str, float]]) -> None:
    assert pairs(parse_emphasis_comfy(prompt)) == expected


# `test/test_prompt_parser.py` of compel, where the expected texts have no space before a comma or full stop.
COMPEL_TESTS: list[tuple[str, list[tuple[str, float]]]] = [
    ("(flowers)--- flames+++", [("flowers", DOWN**3), ("flames", UP**3)]),
    ("(pretty flowers)+", [("pretty flowers", UP)]),
    ("(pretty flowers)+, the flames are too hot", [("pretty flowers", UP), (", the flames are too hot", 1.0)]),
    ("fire flames++", [("fire", 1.0), ("flames", UP**2)]),
    ("flowers fire-- flames", [("flowers", 1.0), ("fire", DOWN**2), ("flames", 1.0)]),
    ("fire (flames (trees)1.5)2.0", [("fire", 1.0), ("flames", 2.0), ("trees", 3.0)]),
    ("a badly formed +test prompt", [("a badly formed +test prompt", 1.0)]),
    ("a badly (formed test prompt", [("a badly (formed test prompt", 1.0)]),
    ("a badly (formed +test )prompt", [("a badly formed +test prompt", 1.0)]),
    ("(((a badly (formed +test )prompt", [("(((a badly formed +test prompt", 1.0)]),
    ("(a (ba)dly (f)ormed +test +prompt", [("(a ba dly f ormed +test +prompt", 1.0)]),
    ("hamburger (kaiser roll)", [("hamburger kaiser roll", 1.0)]),
    ("hamburger ((bun))", [("hamburger bun", 1.0)]),
]


@pytest.mark.parametrize(("prompt", "expected"), COMPEL_TESTS)
def test_published_tests_of_compel(prompt: str, expected: list[tuple[str, float]]) -> None:
    assert pairs(parse_emphasis_compel(prompt)) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", [("", 1.0)]),
        (" \n ", [("", 1.0)]),
        # Nesting multiplies from the outside in.
        ("(picking apricots+)++", [("picking", UP**2), ("apricots", UP**2 * UP)]),
        ("(a)0.5 (b).5 (c)2 (d)0", [("a b", 0.5), ("c", 2.0), ("d", 0.0)]),
        # The sign or number touches the bracket; a full stop after a number ends the sentence.
        ("(a) + (b) 1.3", [("a + b 1.3", 1.0)]),
        ("(a)0.7. b", [("a", 0.7), (". b", 1.0)]),
        # Signs weigh a word at its end only; punctuation may follow.
        ("well-known c+d -x + --", [("well-known c+d -x + --", 1.0)]),
        ("red+, blue-.", [("red", UP), (",", 1.0), ("blue", DOWN), (".", 1.0)]),
        # Escapes, and what is not in the subset.
        (r"\(a\) c\+\+ x\- \"y\"", [('(a) c++ x- "y"', 1.0)]),
        (r"c\++", [("c+", UP)]),
        ("a) (b)+", [("a)", 1.0), ("b", UP)]),
        ('"a b"+', [('"a', 1.0), ('b"', UP)]),
        ("(a)9999999", [("a", 1.0)]),
    ],
)
def test_compel(prompt: str, expected: list[tuple[str, float]]) -> None:
    assert pairs(parse_emphasis_compel(prompt)) == expected


def test_brackets_that_are_too_deep_are_text() -> None:
    product = 1.0
    for _ in range(MAX_DEPTH):
        product *= UP
    deep = "(" * (MAX_DEPTH + 2) + "a" + ")" * (MAX_DEPTH + 2)
    assert pairs(parse_emphasis_comfy(deep)) == [("((a))", product)]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a" + "+" * 20_000, MAX_WEIGHT),
        ("(a)" + "-" * 20_000, 0.0),
        ("(" * 60 + "a" + ")999999" * 60, MAX_WEIGHT),
        ("(" * 8000 + "a" + ")+" * 8000, MAX_WEIGHT),
    ],
)
def test_weights_of_compel_stay_finite(prompt: str, expected: float) -> None:
    (fragment,) = parse_emphasis_compel(prompt)
    assert fragment.weight == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("prompt", ["(", ")", "(x", "(x)", "(x:1", "()", "+", "-", "a+ ", "\\", ":", " "])
def test_long_prompts(prompt: str) -> None:
    for text in (prompt * 5000, prompt * 5000 + ")" * 5000, ":1" + prompt * 5000 + ":1)" * 5000):
        assert all(abs(fragment.weight) <= MAX_WEIGHT for fragment in parse_emphasis_comfy(text))
        assert all(abs(fragment.weight) <= MAX_WEIGHT for fragment in parse_emphasis_compel(text))


def check(count: int, seed: int) -> None:
    pieces = [*"(((()))):\\,+-. ab", "1.3", ":1.2)", ")++", ")1.5", "\\(", "\n"]
    chosen = random.Random(seed)
    for _ in range(count):
        prompt = "".join(chosen.choices(pieces, k=chosen.randint(0, 60)))
        for fragments in (parse_emphasis_comfy(prompt), parse_emphasis_compel(prompt)):
            assert fragments
            assert all(abs(fragment.weight) <= MAX_WEIGHT for fragment in fragments)
            rest = iter(" ".join(prompt))
            assert all(letter in rest for fragment in fragments for letter in fragment.text if letter != " ")


def test_any_text_is_a_prompt() -> None:
    check(2_000, 0)


@pytest.mark.slow
def test_very_many_texts_are_prompts() -> None:
    check(100_000, 1)
