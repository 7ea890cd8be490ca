r"""Every cap holds where it says and not before: what is beyond one is refused by its name, and not by being slow.

The hostile inputs are stopped by many caps at once, so that no one of them is missed there when it is gone.
"""

import pytest

from rewards.math.decide import decide
from rewards.math.equal_expression import order, real, same
from rewards.math.exact import rational
from rewards.math.extract import extract
from rewards.math.parser import parse
from rewards.math.real_sets import pieces
from rewards.math.tokens import Foreign, Unreadable, tokenize
from rewards.math.values import read


def node(text):
    return parse(tokenize(text))


def value(text):
    return read(tokenize(text))


def unread(count):
    return ", ".join(rf"\oint {n}" for n in range(2, 2 + count))


def absolutes(count):
    return " + ".join(f"|x - {n}|" for n in range(count)) + " < 99"


def square(size):
    rows = r" \\ ".join([" & ".join(["1"] * size)] * size)
    return read(tokenize(rf"\begin{{vmatrix}}{rows}\end{{vmatrix}}".replace("\\\\", "\\cr ")))


@pytest.mark.parametrize(
    ("gold", "within", "beyond", "rule"),
    [
        ("5", "x" * 4000, "x" * 4001, "too long to compare"),
        # with the gold and a space between tokens 399 and 403 signs
        ("5", r"\sum_{k=1}^{4} " + "x+" * 93 + "k", r"\sum_{k=1}^{4} " + "x+" * 94 + "k", "too long for the"),
        ("1,2,3,4,5,6,7,8,9", "1", unread(9), "too long for the symbolic workers"),
        ("5", "1," * 399 + "1", "1," * 400 + "1", "not readable: too many items"),
        ("5", "(" + "1," * 399 + "1)", "(" + "1," * 400 + "1)", "not readable: too many items"),
        ("5", r"\{" + "1," * 399 + r"1\}", r"\{" + "1," * 400 + r"1\}", "not readable: too many items"),
        ("5", "x+" * 599 + "x", "x+" * 600 + "x", "not readable: too long"),  # 1199 and 1201 tokens
        ("5", "1" * 400, "1" * 401, "not readable: too many digits"),
        ("5", "1" * 400 + "_9", "1" * 401 + "_9", "not readable: too many digits"),
        ("5", r"0.\overline{" + "1" * 399 + "}", r"0.\overline{" + "1" * 401 + "}", "not readable: too many digits"),
        ("5", "x-(" * 40 + "4" + ")" * 40, "x-(" * 41 + "4" + ")" * 41, "not readable: nested too deep"),
    ],
)
def test_texts(gold, within, beyond, rule):
    assert "too" not in decide(gold, within).rule
    decision = decide(gold, beyond)
    assert (decision.equal, decision.open) == (False, ())
    assert decision.rule.startswith(rule)


def test_the_workers_are_asked_eight_questions_and_no_ninth():
    assert len(decide("1,2,3,4,5,6,7,8", unread(8)).open) == 8


def test_a_comparison_ends_after_so_many_steps_and_not_by_a_clock():
    # two lists of n in opposite order: the k-th is found behind n - k others, n (n + 1) / 2 steps, and one for the
    # lists themselves: 19,901 for 199, 20,101 for 200
    for count, late in ((199, False), (200, True)):
        numbers = [f"{k}.5" for k in range(count)]
        decision = decide(",".join(numbers), ",".join(reversed(numbers)))
        assert (decision.equal, decision.late) == (not late, late)


@pytest.mark.parametrize(
    ("within", "beyond"),
    [
        ("2500!", "2501!"), (r"\binom{2500}{2}", r"\binom{2501}{2}"),
        ("2^{30000}", "2^{30001}"),  # two bits each
        (r"2^{30000} \cdot 2^{30000} \cdot 2^{30000}", r"2^{30000} \cdot 2^{30000} \cdot 2^{30000} \cdot 2^{30000}"),
        (r"\gcd(2^{9999}, 0)", r"\gcd(2^{10001}, 0)"), (r"\lcm(2^{9999}, 1)", r"\lcm(2^{5001}, 3^{5001})"),
        (r"3^{2^{30000}} \mod 7", r"3^{2^{30001}} \mod 7"),
    ],
)  # fmt: skip
def test_exact_constants(within, beyond):
    assert rational(node(within)) is not None
    assert rational(node(beyond)) is None


def test_powers_of_letters():
    assert same(node("x^{10000000}"), node(r"x \cdot x^{9999999}")) is True
    assert same(node("x^{10000001}"), node(r"x \cdot x^{10000000}")) is None


@pytest.mark.parametrize("function", ["\\sin", "\\cos", "\\arctan", "\\floor"])
def test_arguments_and_exponents(function):
    assert real(("fn", function, node("10^7"))) is not None
    assert real(("fn", function, node("10^9"))) is None
    # the double is refused, and so is what has more digits
    assert same(("fn", function, node(r"10^9\sqrt2")), ("fn", function, node(r"\sqrt{2 \cdot 10^{18}}"))) is None
    assert real(node(r"(1+10^{-9})^{10^7\sqrt2}")) is not None
    assert real(node(r"(1+10^{-9})^{10^9\sqrt2}")) is None


def test_digits_beyond_the_sixtieth():
    for text in ("2^{1/2^{2000}}", "2^{1/2^{2300}}"):  # 602 and 692 digits
        assert order(node(text), node("1")) == 1 and same(node(text), node("1")) is False
    for text in ("2^{1/2^{2400}}", "2^{1/2^{9000}}"):  # 722
        assert order(node(text), node("1")) is None and same(node(text), node("1")) is None


@pytest.mark.parametrize(
    ("within", "beyond"),
    [("2^{9999}", "2^{10001}"), ("3000!", "3001!"), (r"\binom{3000}{7}", r"\binom{3001}{7}"),
     ("2^{2^{2^2}}", "2^{2^{2^{2^2}}}")],
)  # fmt: skip
def test_what_the_workers_may_see(within, beyond):
    asked = r"\sum_{k=1}^{4} k"
    assert len(decide(asked, within).open) == 1
    assert decide(asked, beyond).open == ()


def test_brackets_bars_and_signs():
    assert node("x" + "!" * 11)
    with pytest.raises(Unreadable, match="too many signs"):
        node("x" + "!" * 13)
    assert square(8).node and not square(9).node and square(9).foreign
    with pytest.raises(Foreign):
        parse(square(9).tokens)
    assert node("|||x|-1|-1|")[0] == "abs"
    with pytest.raises(Unreadable):
        node("||||x|-1|-1|-1|")


def test_sets_of_reals():
    assert pieces(value(absolutes(4))) is not None and pieces(value(absolutes(5))) is None
    eight, nine = (" < ".join(["0", *["x"] * letters, "9"]) for letters in (7, 8))
    assert pieces(value(eight)) is not None and pieces(value(nine)) is None
    for count, kept in ((60, True), (61, False)):
        union = r" \cup ".join(f"({n},{n + 1})" for n in range(count))
        choice = " \\text{ or } ".join(f"x < {n}" for n in range(count))
        assert (pieces(value(union)) is not None) is kept
        assert (pieces(value(choice)) is not None) is kept


def test_letters_of_a_rule():
    for count, found in ((4, True), (5, False)):
        gold, answer = (
            rf"\{{({letters}) : {letters} \in \mathbb{{R}}\}}"
            for letters in (",".join(names[:count]) for names in ("abcdh", "stuvw"))
        )
        assert decide(gold, answer).equal is found


def test_where_an_answer_is_looked_for():
    assert extract("The answer is 12. " + "x " * 2900).text == "12"
    assert extract("The answer is 12. " + "x " * 3100).text != "12"
    boxes = [rf"\boxed{{{n}}}" for n in range(70)]
    assert extract(", ".join(boxes)).text.split(", ") == [str(n) for n in range(6, 70)]
    assert extract(r"\boxed{1}" + " " * 200 + r"\boxed{2}").text == "1, 2"
    assert extract(r"\boxed{1}" + " " * 201 + r"\boxed{2}").text == "2"
