"""The prompt and answer contract: what Format writes it accepts, and nothing that only looks alike."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.formats import FORMATS, boxes, split_completion

THINK, BOXED = FORMATS["think-boxed"], FORMATS["boxed"]
plain = st.text(st.characters(exclude_characters="\\{}<>"), min_size=1).filter(str.strip)


@given(reasoning=plain, answer=plain)
def test_what_a_format_writes_it_accepts_and_takes_apart_again(reasoning, answer):
    for fmt in FORMATS.values():
        text = fmt.completion(reasoning, answer)
        assert fmt.follows(text) and fmt.follows(text + " \n")
        assert boxes(text)[-1][2] == answer.strip()
    assert split_completion(THINK.completion(reasoning, answer)) == (reasoning.strip(), f"\\boxed{{{answer.strip()}}}")


def test_the_exact_text():
    assert THINK.completion("6 * 7 = 42", "42") == "<think>\n6 * 7 = 42\n</think>\n\\boxed{42}"
    assert BOXED.completion("6 * 7 = 42", "42") == "6 * 7 = 42\n\\boxed{42}"
    system, user = THINK.messages("6 * 7?")
    assert system == {"role": "system", "content": THINK.instruction} and user["content"] == "6 * 7?"


@pytest.mark.parametrize(
    "text",
    [
        "<think>\nlong \\boxed{1}, no\n</think>\n\\boxed{42}",  # a box while thinking is not an answer
        "<think>a</think> The answer is \\boxed{\\frac{1}{2}}\n",
        "\n<think>a</think>\\boxed{\\{1, 2\\}}",
    ],
)
def test_think_boxed_accepts(text):
    assert THINK.follows(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\\boxed{42}",
        "<think>a\n\\boxed{42}",
        "<think></think>\\boxed{42}",
        "so <think>a</think>\\boxed{42}",
        "a</think>\\boxed{42}",
        "<think>a</think>42",
        "<think>a</think>\\boxed{}",
        "<think>a</think>\\boxed{42",
        "<think>a</think>\\boxed{42} done",
        "<think>a</think>\\boxed{1}\\boxed{42}",
        "<think>a</think>\\boxed{\\boxed{42}}",
        "<think>a</think><think>b</think>\\boxed{42}",
        "<think>a<think>b</think>\\boxed{42}",
    ],
)
def test_think_boxed_refuses(text):
    assert not THINK.follows(text)


def test_boxed_wants_no_tags_and_one_box_at_the_end():
    assert BOXED.follows("6 * 7 = 42 . \\boxed{42}")
    for text in ("42", "\\boxed{1} \\boxed{2}", "\\boxed{42}.", THINK.completion("a", "42")):
        assert not BOXED.follows(text)


def test_split_completion_of_unusual_texts():
    assert split_completion("a</think>\\boxed{1}") == ("a", "\\boxed{1}")  # <think> stood in the prompt
    assert split_completion("<think>a") == ("a", "")
    assert split_completion("a \\boxed{1}") == ("", "a \\boxed{1}")
