"""server.prompt against the published examples of AUTOMATIC1111's webui, and against its rules worked out by hand."""

import random
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.prompt import BREAK, MAX_DEPTH, MAX_WEIGHT, Fragment, parse_composition, parse_emphasis

UP, DOWN = 1.1, 1 / 1.1

# `modules/prompt_parser.py`, `parse_prompt_attention`: prompt, then texts and weights to the last bit.
DOCTESTS: list[tuple[str, list[tuple[str, float]]]] = [
    ("normal text", [("normal text", 1.0)]),
    ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
    ("(unbalanced", [("unbalanced", 1.1)]),
    (r"\(literal\]", [("(literal]", 1.0)]),
    ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
    (
        "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
        [
            ("a ", 1.0),
            ("house", 1.5730000000000004),
            (" ", 1.1),
            ("on", 1.0),
            (" a ", 1.1),
            ("hill", 0.55),
            (", sun, ", 1.1),
            ("sky", 1.4641000000000006),
            (".", 1.1),
        ],
    ),
]

EMPHASIS: list[tuple[str, list[tuple[str, float]]]] = [
    ("", [("", 1.0)]),
    ("()", [("", 1.0)]),
    ("((x))", [("x", UP * UP)]),
    ("[x]", [("x", DOWN)]),
    ("[[x]]", [("x", DOWN * DOWN)]),
    ("((x:0.5):3)", [("x", 0.5 * 3)]),
    # A number may have a sign, spaces around it and no digits before or after its point.
    ("(x:-2)(y:+.5)( z : 2. )", [("x", -2.0), ("y", 0.5), (" z ", 2.0)]),
    # It is read in round brackets only, and only right before the closing one.
    ("[x:1.3]", [("x:1.3", DOWN)]),
    ("(x:1.3 y)", [("x:1.3 y", UP)]),
    ("(x:1e3)", [("x:1e3", UP)]),
    ("x:1.3) y", [("x:1.3) y", 1.0)]),
    ("[x:1.3) y", [("x:1.3) y", DOWN)]),
    # What closes nothing is text; what is never closed reaches to the end.
    ("a) b] c", [("a) b] c", 1.0)]),
    ("a (b [c", [("a ", 1.0), ("b ", UP), ("c", UP * DOWN)]),
    ("(x:1.3", [("x:1.3", UP)]),
    # Round and square brackets do not see each other.
    ("(a [b) c]", [("a ", UP), ("b", UP * DOWN), (" c", DOWN)]),
    # Escapes; any other backslash vanishes.
    (r"a \(b\) \[c\] \\ d", [(r"a (b) [c] \ d", 1.0)]),
    (r"(a\):1.5)", [("a)", 1.5)]),
    ("a\\b\\", [("ab", 1.0)]),
    # Neighbours of equal weight are one, also where a bracket says 1.
    ("(a:1)b(c:1.0) (d:1.1)(e)", [("abc ", 1.0), ("de", 1.1)]),
]


def pairs(fragments: list[Fragment]) -> list[tuple[str, float]]:
    assert not any(fragment.ends_chunk for fragment in fragments)
    return [(fragment.text, fragment.weight) for fragment in fragments]


def letters(fragments: list[Fragment]) -> list[tuple[str, float]]:
    """Every character with its weight."""
    return [(letter, fragment.weight) for fragment in fragments for letter in fragment.text]


@pytest.mark.parametrize(("prompt", "expected"), DOCTESTS)
def test_published_examples_of_emphasis(prompt: str, expected: list[tuple[str, float]]) -> None:
    assert pairs(parse_emphasis(prompt)) == expected


@pytest.mark.parametrize(("prompt", "expected"), EMPHASIS)
def test_rules_of_emphasis(prompt: str, expected: list[tuple[str, float]]) -> None:
    assert pairs(parse_emphasis(prompt)) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("BREAK", [Fragment("", 1.0), BREAK, Fragment("", 1.0)]),
        ("a BREAK b", [Fragment("a", 1.0), BREAK, Fragment("b", 1.0)]),
        (" a\n BREAK \t BREAK  b ", [Fragment(" a", 1.0), BREAK, Fragment("", 1.0), BREAK, Fragment("b ", 1.0)]),
        ("(a) BREAK [b]", [Fragment("a", 1.1), Fragment("", 1.0), BREAK, Fragment("", 1.0), Fragment("b", DOWN)]),
        ("(a BREAK b:1.0)", [Fragment("a", 1.0), BREAK, Fragment("b", 1.0)]),
        # A1111 keeps it as the text "BREAK" of weight -1: a weight around it makes it a word.
        ("(a BREAK b:1.2)", [Fragment("a", 1.2), Fragment("BREAK", -1.2), Fragment("b", 1.2)]),
        ("(BREAK", [Fragment("", 1.1), Fragment("BREAK", -1.1), Fragment("", 1.1)]),
        (r"(B\REAK:-1)", [BREAK]),
        ("aBREAK BREAKs Break BREAK_", [Fragment("aBREAK BREAKs Break BREAK_", 1.0)]),
    ],
)
def test_break(prompt: str, expected: list[Fragment]) -> None:
    assert parse_emphasis(prompt) == expected


@pytest.mark.parametrize("number", ["1.2.3", ".", "+.", "1000000.1", "9" * 400])
def test_what_is_no_weight_is_text(number: str) -> None:
    assert pairs(parse_emphasis(f"(a:{number}) b")) == [(f"a:{number}", UP), (" b", 1.0)]


def test_weights_stay_finite() -> None:
    (fragment,) = parse_emphasis("(" * MAX_DEPTH + "x" + ":-999999)" * MAX_DEPTH)
    assert abs(fragment.weight) == MAX_WEIGHT


def test_brackets_that_are_too_deep_are_text() -> None:
    product = 1.0
    for _ in range(MAX_DEPTH):
        product *= UP
    deep = "(" * (MAX_DEPTH + 2) + "a:1.5)) b" + ")" * MAX_DEPTH + "c"
    assert pairs(parse_emphasis(deep)) == [("((a:1.5)) b", product), ("c", 1.0)]


plain = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda text: "BREAK" not in text
)
numbers = st.integers(-300, 300).map(lambda number: f"{number / 100}")


def escaped(text: str) -> str:
    return "".join("\\" + letter if letter in "\\()[]" else letter for letter in text)


@given(st.lists(st.tuples(plain, numbers), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None, database=None)
def test_weighted_texts_come_back(parts: list[tuple[str, str]]) -> None:
    prompt = "".join(f"({escaped(text)}:{number})" for text, number in parts)
    assert letters(parse_emphasis(prompt)) == [(letter, float(number)) for text, number in parts for letter in text]


@given(plain)
@settings(max_examples=100, deadline=None, database=None)
def test_escaped_text_is_one_fragment(text: str) -> None:
    assert pairs(parse_emphasis(escaped(text))) == [(text, 1.0)]


@given(st.lists(st.tuples(plain, numbers), min_size=1, max_size=8), st.sampled_from([("(", ")", UP), ("[", "]", DOWN)]))
@settings(max_examples=100, deadline=None, database=None)
def test_a_bracket_multiplies_what_is_in_it(parts: list[tuple[str, str]], around: tuple[str, str, float]) -> None:
    opening, closing, factor = around
    prompt = "".join(f"({escaped(text)}:{number})" for text, number in parts)
    expected = [(letter, weight * factor) for letter, weight in letters(parse_emphasis(prompt))]
    assert letters(parse_emphasis(opening + prompt + closing)) == expected
    assert letters(parse_emphasis(opening + prompt)) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", [("", 1.0)]),
        ("a cat", [("a cat", 1.0)]),
        ("a cat AND a dog", [("a cat", 1.0), (" a dog", 1.0)]),
        ("a cat :1.2 AND a dog:.5 AND mist : -2.\n", [("a cat", 1.2), (" a dog", 0.5), (" mist", -2.0)]),
        # Only the last colon counts, and only if nothing but a number follows.
        ("a:1:2", [("a:1", 2.0)]),
        ("a: b", [("a: b", 1.0)]),
        ("a:1 b", [("a:1 b", 1.0)]),
        ("a:", [("a:", 1.0)]),
        ("a:1e3", [("a:1e3", 1.0)]),
        ("(a:1.2)", [("(a:1.2)", 1.0)]),
        (":2", [("", 2.0)]),
        # No `AND` is needed for a weight, and none is missed.
        ("portrait: 3", [("portrait", 3.0)]),
        ("AND", [("", 1.0), ("", 1.0)]),
        ("a AND", [("a", 1.0), ("", 1.0)]),
        ("SAND AND_ and", [("SAND AND_ and", 1.0)]),
        ("[a AND b:3]", [("[a", 1.0), (" b:3]", 1.0)]),
        ("first\nline AND second\nline : 2 ", [("first\nline", 1.0), (" second\nline", 2.0)]),
        ("a:" + "9" * 400, [("a:" + "9" * 400, 1.0)]),
    ],
)
def test_composition(prompt: str, expected: list[tuple[str, float]]) -> None:
    assert parse_composition(prompt) == expected


@given(st.lists(st.tuples(plain.filter(lambda text: "AND" not in text), numbers), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None, database=None)
def test_composed_parts_come_back(parts: list[tuple[str, str]]) -> None:
    found = parse_composition(" AND ".join(f"{text}:{number}" for text, number in parts))
    assert [text.strip() for text, _ in found] == [text.strip() for text, _ in parts]
    assert [weight for _, weight in found] == [float(number) for _, number in parts]


def prompts(count: int, seed: int) -> list[str]:
    """Prompts with more syntax than sense."""
    pieces = [
        *"()[]:|\\,+-.<>_ ",
        *string.ascii_letters[:4],
        "1.3",
        ":1.2)",
        "BREAK",
        " AND ",
        "\n",
        "\u00e9",
        "\u0663",
    ]
    chosen = random.Random(seed)
    return ["".join(chosen.choices(pieces, k=chosen.randint(0, 60))) for _ in range(count)]


def check(prompt: str) -> None:
    fragments = parse_emphasis(prompt)
    assert fragments
    assert all(abs(fragment.weight) <= MAX_WEIGHT for fragment in fragments)
    # Nothing is made up: the characters are the prompt's, in its order.
    rest = iter(prompt)
    assert all(letter in rest for fragment in fragments for letter in fragment.text)
    assert len(parse_composition(prompt)) == prompt.count(" AND ") + 1


@pytest.mark.parametrize("prompt", ["(", "[", "([", "(x", ")", ":", "\\", " ", "BREAK ", "AND ", "(a:1.1", "a:1"])
def test_long_prompts(prompt: str) -> None:
    assert parse_emphasis(prompt * 5000)
    assert parse_composition(prompt * 5000)


def test_any_text_is_a_prompt() -> None:
    for prompt in prompts(2_000, 0):
        check(prompt)


@pytest.mark.slow
def test_very_many_texts_are_prompts() -> None:
    for prompt in prompts(100_000, 1):
        check(prompt)
