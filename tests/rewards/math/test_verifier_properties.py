"""What holds for every answer: equality with itself in every form, difference after every change, bounds in time."""

import re
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rewards.math.cases import normalised
from rewards.math.decide import decide
from rewards.math.extract import extract
from rewards.math.real_sets import _complement, _intersection, _merged, same_set
from rewards.math.verifier import Verifier, verify
from rewards.verdict import Verdict

settings.register_profile("verifier", deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
settings.load_profile("verifier")

integers = st.integers(-(10**9), 10**9)
small = st.integers(1, 99)
letters = st.sampled_from("abxyzn")


@st.composite
def numbers(draw):
    kind = draw(st.integers(0, 4))
    if kind == 0:
        return str(draw(integers))
    if kind == 1:
        return f"\\frac{{{draw(integers)}}}{{{draw(small)}}}"
    if kind == 2:
        return f"{draw(integers)}.{draw(st.integers(0, 999)):03d}"
    if kind == 3:
        return f"{draw(small)}\\sqrt{{{draw(st.sampled_from([2, 3, 5, 6, 7]))}}}"
    return f"\\frac{{{draw(small)}\\pi}}{{{draw(small)}}}"


@st.composite
def expressions(draw, depth=2):
    if depth == 0:
        return draw(st.one_of(numbers(), letters))
    left, right = draw(expressions(depth - 1)), draw(expressions(depth - 1))
    return draw(
        st.sampled_from(
            [f"({left}) + ({right})", f"({left})({right})", f"\\frac{{{left}}}{{{right}}}", f"({left})^{{2}} - {right}"]
        )
    )


@st.composite
def answers(draw):
    kind = draw(st.integers(0, 5))
    if kind == 0:
        return draw(numbers())
    if kind == 1:
        return draw(expressions())
    items = draw(st.lists(numbers(), min_size=2, max_size=4))
    if kind == 2:
        return ", ".join(items)
    if kind == 3:
        return "(" + ", ".join(items) + ")"
    if kind == 4:
        return "\\{" + ", ".join(items) + "\\}"
    return "\\begin{pmatrix} " + " \\\\ ".join(items) + " \\end{pmatrix}"


FORMS = [
    "{}", "${}$", " {} ", "{}.", "x = {}", "\\displaystyle {}", "{{{}}}", "\\mathbf{{{}}}", "{}\\,",
    "\\left. {} \\right.",
]  # fmt: skip


@given(answers(), st.sampled_from(FORMS))
@settings(max_examples=250)
def test_a_gold_equals_itself_in_every_form(gold, form):
    answer = form.format(gold).replace("\\frac", "\\dfrac")
    assert verify(f"\\boxed{{{answer}}}", gold) is Verdict.CORRECT


@given(answers(), answers())
@settings(max_examples=250)
def test_equality_is_symmetric(one, two):
    forth, back = decide(one, two), decide(two, one)
    assert (forth.equal, bool(forth.open)) == (back.equal, bool(back.open))


@given(numbers(), st.data())
@settings(max_examples=300)
def test_a_changed_number_never_passes(gold, data):
    written = list(re.finditer(r"\d+", gold))
    chosen = data.draw(st.sampled_from(written))
    value = int(chosen.group()) + data.draw(st.sampled_from([1, 2, 10, 100]))
    changed = f"{gold[: chosen.start()]}{value:0{len(chosen.group())}d}{gold[chosen.end() :]}"
    zero = re.search(r"(?<!\d)-?0+(?:\.0+)?(?!\d)", gold)
    if zero and "frac" in gold and chosen.start() > zero.start():
        return  # 0/3 and 0/4 are one number
    assert verify(f"\\boxed{{{changed}}}", gold) is Verdict.WRONG


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=5, unique=True), st.randoms())
def test_lists_are_sets_and_tuples_are_not(values, random):
    shuffled = values[:]
    random.shuffle(shuffled)
    one, two = ", ".join(map(str, values)), ", ".join(map(str, shuffled))
    assert decide(one, f"\\{{{two}\\}}").equal
    assert decide(f"({one})", f"({two})").equal == (values == shuffled)
    assert not decide(one, ", ".join(map(str, shuffled[1:]))).equal


@given(expressions(), small)
@settings(max_examples=150)
def test_equal_formulas_are_equal_and_shifted_ones_are_not(formula, shift):
    rewritten = f"\\frac{{2({formula}) + {2 * shift}}}{{2}} - {shift}"
    assert decide(formula, rewritten).equal or "frac" in formula  # a hidden division by zero is no number
    assert not decide(formula, f"{formula} + {shift}").equal


prose = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\\<#"), max_size=200)


@given(prose, st.sampled_from(["12", "\\frac{1}{2}", "(1, 2)", "x^2+1"]), st.booleans())
@settings(max_examples=200)
def test_reasoning_before_the_answer_never_changes_the_verdict(text, gold, right):
    answer = gold if right else gold + "7"
    plain = f"\\boxed{{{answer}}}"
    expected = verify(plain, gold)
    assert expected is (Verdict.CORRECT if right else Verdict.WRONG)
    assert verify(text + ". So " + plain, gold) is expected
    assert verify(f"<think>{text} \\boxed{{13}}</think>\n" + plain, gold) is expected


intervals = st.lists(
    st.tuples(st.integers(-9, 9), st.integers(0, 6), st.booleans(), st.booleans()).map(
        lambda t: (float(t[0]), float(t[0] + t[1]), t[2] or t[1] == 0, t[3] or t[1] == 0)
    ),
    max_size=4,
)


def _member(pieces, x):
    return any(
        low < x < high or (x == low and low_in) or (x == high and high_in) for low, high, low_in, high_in in pieces
    )


@given(intervals, intervals)
@settings(max_examples=200)
def test_sets_of_reals_behave_as_sets(one, two):
    """Membership at whole and half points decides: the ends are whole."""
    merged, other = _merged(one), _merged(two)
    both, rest = _intersection(merged, other), _complement(merged)
    for half in range(-22, 34):
        x = half / 2
        assert _member(merged, x) == _member(one, x)
        assert _member(rest, x) == (not _member(one, x))
        assert _member(both, x) == (_member(one, x) and _member(two, x))
    assert same_set(merged, _merged(reversed(one)))


SOUP = [
    "\\frac", "{", "}", "(", ")", "[", "]", "1", "12", "x", "i", "e", "\\pi", "^", "_", "+", "-", "*", "/", ",", ";",
    ":", "=", "<", "\\leq", "\\in", "\\cup", "\\pm", "\\sqrt", "\\text{", "and", "|", "!", "'", "%", "\\circ", "\\{",
    "\\}", "\\infty", "\\begin{pmatrix}", "\\end{pmatrix}", "\\\\", "&", "\\boxed{", "$", " ", "\\log", "\\sin",
    "\\binom", "\\sum", "\\int", "0", ".", "9999999", "\\overline{3}", "1e9", "\\lfloor", "\\max", "f(",
    "\\mathbb{R}", "½",
    "①",
    "\\setminus", "\\approx", "\\neq", "\\mid", "\\text{ for all }", "p.m.", "10:30", "\x00", "\u202e", "5 cm", "π",
]  # fmt: skip


@given(
    st.lists(st.sampled_from(SOUP), max_size=40).map("".join), st.lists(st.sampled_from(SOUP), max_size=12).map("".join)
)
@settings(max_examples=800)
def test_no_soup_of_signs_raises_or_takes_long(answer, gold):
    start = time.perf_counter()
    decision = decide(gold, answer)
    decide(answer, answer + gold)
    extract(answer + gold)
    normalised(answer)
    assert all(len(one) + len(two) <= 400 for one, two in decision.open)
    assert time.perf_counter() - start < 1.5


@given(st.text(max_size=300), st.text(max_size=60))
@settings(max_examples=400)
def test_no_text_raises(completion, gold):
    verifier = Verifier()
    verifier.verify(completion, gold)
    assert verifier.counts.errors == 0


@pytest.mark.parametrize(
    "piece",
    [
        "^",
        " ",
        "\\text{",
        "{",
        "\\(",
        "$",
        "\\boxed{",
        "(",
        "\\sqrt",
        "1,",
        "x+",
        "'",
        "-",
        "\\pm",
        "|",
        "\\frac1",
        "!",
        "1 ",
    ],
)
@pytest.mark.parametrize("count", [300, 1900, 60_000])
def test_repetition_of_a_piece_stays_fast(piece, count):
    text = piece * count
    start = time.perf_counter()
    assert verify("\\boxed{" + text + "}", "5") is Verdict.WRONG
    assert verify(text, "5") is Verdict.WRONG
    assert time.perf_counter() - start < 1.5
