r"""What counts as the same answer. Every policy stands here with cases on both sides of it.

The left column is the gold, the right one what stands in the box.
"""

import pytest

from rewards.math.verifier import verify
from rewards.verdict import Verdict


def boxed(gold, answer):
    return verify(f"We compute. The answer is $\\boxed{{{answer}}}$.", gold)


SAME = [
    # spellings of one number
    ("1030", r"1\,030"), ("1030", "1{,}030"), ("1030", r"1,\!030"), ("1030", "1,030"), ("1030", "1 030"),
    ("200", "200."), ("200", "200.00"), ("0.5", ".5"), ("4", "004"), ("-3", "−3"), ("35000", r"3.5 \times 10^{4}"),
    ("1/2", r"\dfrac12"), (r"\frac{3}{2}", r"1\frac{1}{2}"), ("40/9", "4 4/9"), (r"\frac13", r"0.\overline{3}"),
    (r"-\frac12", r"\frac{1}{-2}"), (r"\frac{1}{2}", "½"), ("5000", "5×10³"), (r"2\sqrt2", r"\sqrt{8}"),
    (r"\frac{\sqrt{2}}{2}", r"\sqrt{\frac12}"), ("120", r"\binom{10}{3}"), ("-1", r"e^{i\pi}"), ("3", r"\log_2 8"),
    (r"\cos 36^\circ", r"\frac{1+\sqrt5}{4}"), (r"\sqrt[3]{2}", "2^{1/3}"), (r"\frac{2}{3}", r"\frac23"),
    # algebra
    ("6+9i", "9i+6"), ("x^2-1", "(x-1)(x+1)"), (r"\frac{3}{2}n+\frac12 m", r"\frac{3n+m}{2}"),
    (r"\frac1{\cos x}", r"\sec x"),
    (r"\frac{2}{3} \cdot 3^n - n", r"2 \cdot 3^{n-1} - n"), (r"\arctan x + C", r"\tan^{-1} x + c"),
    # units, money, angles, percentages
    ("93", "93 dollars"), ("18", r"\$18"), ("45^\\circ", "45"), ("45", "45°"), (r"\frac{2\pi}{3}", r"120^\circ"),
    ("4", r"4\text{ hours}"), ("10", "10m"), ("5 m", "500 cm"), (r"864 \mbox{ inches}^2", "864"),
    ("12", r"12^{\mathrm{th}}"),
    ("25\\%", "25"), ("25\\%", r"\frac14"), (r"\frac14", "25\\%"), ("8:34 \\text{ P.M.}", "20:34"),
    ("5000000", "5 million"), ("36", r"3\text{ dozen eggs}"), ("3\\text{ million}", "3,000,000"),
    ("4", r"4\text{ cm squared}"),
    # names
    ("16", "x = 16"), ("k=3", "3"), ("f(z)=z", "f(x)=x"), ("a_n = 2n-1", "2n - 1"),
    (r"\frac{\sqrt2}{2}", r"x=y=\frac{\sqrt2}{2}"),
    # lists, sets, tuples, intervals, matrices
    ("1,2", r"2 \text{ and } 1"), ("-2,1", r"\{1, -2\}"), ("1,2,3", "x=1,y=2,z=3"), ("(3,4)", "(x,y) = (3, 4)"),
    (r"1 \pm \sqrt{19}", r"1+\sqrt{19}, 1-\sqrt{19}"), ("(3,4]", r"3 < \lambda \leq 4"), (r"(-\infty,-5)", "k < -5"),
    (r"\{x \mid x<3\}", r"(-\infty,3)"), (r"(-\infty,0)\cup(0,\infty)", r"x \neq 0"), ("x < 1", "-x > -1"),
    (r"\begin{pmatrix}-7\\16\end{pmatrix}", "(-7,16)"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}"),
    # equations
    ("2x+4y-3=0", r"y=-\frac12x+\frac34"), ("x^2+y^2=4", "x^2+y^2-4=0"), ("y + 1 = -(2x-1)^2", "-4x^2+4x-2"),
    ("-1", r"e^{i\pi} = -1"), (r"\frac{\sqrt3}{3}", r"\frac{\sqrt3}{3} \approx 0.577"),
    # words
    (r"\text{(C)}", "C"), (r"\text{C}", r"\textbf{(C)}\ 15"), (r"\text{odd}", "odd"),
    (r"\text{Evelyn}", r"\text{evelyn}"),
    # bases
    ("204_5", "204_{5}"), ("204_5", "204"),
    # a decimal with six significant digits stands for what it was rounded from
    (r"\frac{1}{12}", "0.0833333"), (r"\frac{1}{432}", r"2.314815 \times 10^{-3}"),
]  # fmt: skip

OTHER = [
    # every value asked for and no other
    ("12", "10, 11, 12, 13"), ("12", r"\{12, 13\}"), ("12", r"12 \text{ or } 13"), ("12", "12 or maybe 13"),
    ("12", r"12 \text{ or maybe 13}"), ("12", r"12 \text{ (13)}"), ("12", r"12 \text{ is wrong}"),
    ("1,2", "1"), ("1", "1,2"), ("2", r"\pm 2"), (r"\pm 2", "2"), ("1,1,2", "1,2,2"),
    # words that make it another number
    ("5", "5 million"), ("3", "3 dozen"), ("12", "12 squared"), ("5", "5 more than 2"), ("5", r"5\text{ thirds}"),
    # around a value is not the value
    ("12", "[10, 14]"), ("12", "11 < x < 13"), ("12", r"x \geq 12"), ("12", r"\{12\} \cup \{13\}"), ("12", r"\neq 12"),
    ("12", r"x \in \mathbb{R}"), ("12", r"\mathbb{R}"), ("12", r"12 \leq x \leq 12.0001"),
    # a chain must hold
    ("15", "15 = 16"), ("56", "57 = 56"), ("80", r"80 \approx 81"), ("2", "z = 3 + 3 = 2"),
    # saying so is not the answer
    ("12", "x"), ("12", r"\text{the answer}"), ("12", r"\text{correct}"), ("12", "?"), ("12", r"\text{not } 12"),
    ("12", "12!"),
    # other numbers
    ("1/2^{99}", "1/2^{98}"), ("60000", "60003"), (r"\frac13", "0.33"), ("2.232", "2.23"), ("5", "5.001"),
    (r"\pi", "3.14"),
    ("45^\\circ", "45\\pi"), ("25\\%", "22.22"), ("10", "0.1"), ("6", "11 6/6"), ("70\\sqrt2", "70 2"),
    ("7", r"\frac{7}{}"),
    # order, ends, shapes
    ("(3,1)", "(1,3)"), ("(3,1)", r"\{1,3\}"), ("[0,1)", "(0,1)"), ("x<1", "x>1"), ("x>5", r"x \geq 5"),
    (r"(2,\infty)", r"(\infty,2)"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&3\\2&4\end{pmatrix}"), ("a=1,b=2", "a=2,b=1"),
    # other formulas and words
    ("|x|", "x"), ("x^2+y^2=1", "x^2-y^2=1"), ("7 = 11a+c", "11a+c"),
    (r"\cos(x)=\frac{42}{59}", r"\sin(x)=\frac{42}{59}"),
    (r"\text{(C)}", "D"), (r"\text{(C)}", r"\text{(C)}, \text{(D)}"), ("odd", r"\text{oddd}"), ("d", r"\text{E}"),
    ("a", "z"),
    # bases and units that say something else
    ("204_5", "204_6"), ("204_5", "54"), ("1_7", "1_8"), ("5 cm", "5 m"), ("4 hours", "4 minutes"),
    (r"\infty", "1000000"),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "answer"), SAME)
def test_the_same_answer_is_correct(gold, answer):
    assert boxed(gold, answer) is Verdict.CORRECT


@pytest.mark.parametrize(("gold", "answer"), OTHER)
def test_another_answer_is_wrong(gold, answer):
    assert boxed(gold, answer) is Verdict.WRONG


@pytest.mark.parametrize(
    ("completion", "verdict"),
    [
        # the think block is not the answer
        ("<think>It is \\boxed{12}. But let me check", Verdict.WRONG),
        ("<think>It is \\boxed{12}.</think>", Verdict.WRONG),
        ("<think>a</think> \\boxed{13} <think>\\boxed{12}", Verdict.WRONG),
        ("<think>Maybe \\boxed{13}? No.</think>\n\\boxed{12}", Verdict.CORRECT),
        ("It is 12.</think>\n\\boxed{12}", Verdict.CORRECT),
        # the last box decides
        ("I get \\boxed{13}. Wait, that is wrong. It is \\boxed{12}.", Verdict.CORRECT),
        ("I get \\boxed{12}. Wait, that is wrong. It is \\boxed{13}.", Verdict.WRONG),
        ("The answer is $12$. \\boxed{13}", Verdict.WRONG),
        ("\\boxed{13} The final answer is $12$.", Verdict.WRONG),
        ("#### 12\n\\boxed{13}", Verdict.WRONG),
        # boxes side by side are one answer
        ("\\boxed{12} or \\boxed{13}", Verdict.WRONG),
        ("\\boxed{13}, \\boxed{12}", Verdict.WRONG),
        ("\\boxed{12} (or \\boxed{13})", Verdict.WRONG),
        ("Possible answers: \\boxed{11}. \\boxed{13}. \\boxed{12}", Verdict.WRONG),
        ("\\boxed{12} and again \\boxed{12}", Verdict.CORRECT),
        ("\\boxed{12}\n\\boxed{12}", Verdict.CORRECT),
        # a box that does not close is no answer
        ("so \\boxed{12", Verdict.WRONG),
        # without a box the closing statement counts
        ("The answer is 12.", Verdict.CORRECT),
        ("The answer is 12 or 13.", Verdict.WRONG),
        ("The answer is not 12.", Verdict.WRONG),
        ("We simplify. I cannot determine the answer.", Verdict.WRONG),
    ],
)
def test_where_an_answer_stands(completion, verdict):
    assert verify(completion, "12") is verdict


def test_values_boxed_one_by_one_are_a_list():
    assert verify(r"\boxed{k = 45} \quad \text{and} \quad \boxed{n = 2}", "k = 45, n = 2") is Verdict.CORRECT
    assert verify(r"\boxed{k = 2} \quad \text{and} \quad \boxed{n = 45}", "k = 45, n = 2") is Verdict.WRONG
    assert verify(r"\boxed{1}, \boxed{2} and \boxed{3}", "1,2,3") is Verdict.CORRECT


@pytest.mark.parametrize("gold", ["1,200", "58,500"])
def test_a_comma_may_be_either(gold):
    """1,200 in a gold is a number or a list: both readings are right, no third one is."""
    assert boxed(gold, gold.replace(",", "")) is Verdict.CORRECT
    assert boxed(gold, gold.replace(",", ", ")) is Verdict.CORRECT
    assert boxed(gold, gold.replace(",", "") + "0") is Verdict.WRONG
