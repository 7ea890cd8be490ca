r"""Families of answers, cases on both sides of each: chains of expressions, absolute values, sets given by a rule,
infinitely many, ends that lie closer than a float can tell.

As in the policies, the left column is the gold, the right one what stands in the box.
"""

import math
import time
from fractions import Fraction

import mpmath
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.math.decide import decide
from rewards.math.equal_expression import PRIME, order, same
from rewards.math.equal_single import Doubt
from rewards.math.exact import determinant, exact
from rewards.math.parser import parse
from rewards.math.real_sets import pieces
from rewards.math.symbolic_pool import PoolSettings
from rewards.math.tokens import tokenize
from rewards.math.values import read
from rewards.math.verifier import Verifier
from rewards.verdict import Verdict

settings.register_profile("verifier", deadline=None, derandomize=True)
settings.load_profile("verifier")


@pytest.fixture(scope="module")
def patient():
    """A verifier whose workers may take as long as a busy machine makes them."""
    verifier = Verifier(PoolSettings(seconds=60.0))
    yield verifier
    assert verifier.counts.errors == 0
    verifier.close()


@pytest.fixture(scope="module")
def verifier():
    verifier = Verifier()
    yield verifier
    assert verifier.counts.errors == 0
    verifier.close()


def node(text):
    return parse(tokenize(text))


CHAINS = [
    ("2", r"17 \bmod 5 = 2"), ("2", r"17 \mod 5 = 2"), ("2", r"17 \pmod{5} = 2"), ("2", "17 mod 5 = 2"),
    ("2", r"17 \bmod 5"), ("3", r"-7 \bmod 5 = 3"), ("2", r"2^{1001} \bmod 5 = 2"),
    ("4", r"2^{10} = 1024 \equiv 4 \pmod 5"), ("2", r"17 \equiv 2 \pmod 5"), ("2", r"x \equiv 2 (\text{mod } 5)"),
    (r"x \equiv 2 \pmod 5", r"n \equiv 7 \pmod{5}"), ("0", r"2024! \bmod 2023 = 0"),
    ("3", r"7^{10^{50}+1} \bmod 4 = 3"), ("6", r"\gcd(12, 18) = 6"), ("36", r"\operatorname{lcm}(12, 18) = 36"),
    ("6", r"\text{gcd}(12, 18)"), ("3", r"\begin{vmatrix} 1 & -1 \\ 1 & 2 \end{vmatrix} = 3"),
    ("3", r"\begin{vmatrix} 1 & -1 \\ 1 & 2 \end{vmatrix}"),
    ("3", r"\begin{vmatrix} 1 & -1 \\ 1 & 2 \end{vmatrix} = 1 \cdot 2 - (-1) \cdot 1 = 3"),
    ("3", r"\det\begin{pmatrix} 1 & -1 \\ 1 & 2 \end{pmatrix} = 3"),
    ("ad-bc", r"\det\begin{bmatrix}a&b\\c&d\end{bmatrix}"),
    ("3", r"\left|\begin{matrix} 1 & -1 \\ 1 & 2 \end{matrix}\right| = 3"),
    (r"\begin{vmatrix}1&2\\3&4\end{vmatrix} = -2", "-2"),
    # names that are expressions
    ("3", r"\det(A) = 3"), ("6", r"\gcd(a, b) = 6"), ("5", r"\|v\| = 5"), ("3", r"\mathbb{E}[X] = 3"),
    (r"\frac34", r"\tan\theta = \frac34"), (r"\frac12", r"\sin^2 2A = \frac12"), ("12", r"\text{Area of } ABC = 12"),
    ("30", r"5 \text{ boxes} \cdot 6 = 30"), ("5", r"\lim_{x \to 3} f(x) = 5"),
    ("0.747", r"\int_0^1 e^{-x^2} dx \approx 0.747"),
    # (3 + 17) mod 5 or 3 + (17 mod 5): nobody can tell
    ("0", r"3 + 17 \bmod 5 = 0"), ("5", r"3 + 17 \bmod 5 = 5"),
]  # fmt: skip

NO_CHAINS = [
    ("3", r"17 \bmod 5 = 3"), ("2", r"18 \bmod 5 = 2"), ("2", r"17 \bmod 5 = 3 = 2"), ("2", r"18 \bmod 5"),
    ("3", r"17 \equiv 3 \pmod 5"), ("2", r"17 \equiv 7 \pmod 5"), ("17", r"17 \equiv 2 \pmod 5"),
    ("4", r"2^{10} = 1023 \equiv 4 \pmod 5"), ("2", r"17 \equiv 2"), ("2", r"17 \bmod 0 = 2"),
    ("2", r"17 \bmod -5 = 2"), (r"x \equiv 2 \pmod 5", r"x \equiv 2 \pmod 7"),
    (r"x \equiv 2 \pmod 5", r"x \equiv 3 \pmod 5"), (r"x \equiv 2 \pmod 5", "2"), ("7", r"\gcd(12, 18) = 7"),
    ("12", r"\gcd(12, 18) = 12"), ("4", r"\begin{vmatrix} 1 & -1 \\ 1 & 2 \end{vmatrix} = 4"),
    ("3", r"\begin{vmatrix} 1 & -1 \\ 1 \end{vmatrix} = 3"), ("-2", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "-2"), ("5", r"12 = \|v\|"), ("12", r"12 = \text{length of } AB = 5"),
    ("5", r"\|v\| = 4 = 5"), ("5", r"\|v\| \neq 5"),
    # an equation for a letter is not its right side
    ("7", "2x + 1 = 7"), ("12", "3x = 12"), ("0", "x^2 - 4 = 0"), ("5", "x + y = 5"), ("1", r"\sin x + \cos x = 1"),
    (r"\sin\theta = \frac34", r"\tan\theta = \frac34"),
    # what is no expression, or takes itself back
    ("12", "7 + = 12"), ("12", r"\frac{}{} = 12"), ("12", "? = 12"), ("12", r"\text{not } 12 = 12"),
    ("5", r"9^{9^{9^9}} = 5"), ("5", r"9^{9^{9^9}} \bmod 7 = 5"),
    ("-3", r"17 \bmod -5"), ("1", r"\begin{vmatrix} 1 & -1 \\ 1 \end{vmatrix} = 1"),
]  # fmt: skip

REFUTABLE = [
    ("1", r"\lim_{x \to 0} \frac{\sin x}{x} = {}", "1", "2"), ("55", r"\sum_{k=1}^{10} k = {}", "55", "56"),
    ("55", r"\sum_{k=1}^{10} k = \frac{10 \cdot 11}{2} = {}", "55", "54"),
    (r"\frac13", r"\int_0^1 x^2 dx = {}", r"\frac13", "3"),
    ("1", r"\lim_{x \to 0} \frac{\sin x}{x} = \lim_{x \to 0} \cos x = {}", "1", "0"),
    ("2x", r"\frac{d}{dx} x^2 = {}", "2x", "3x"),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "answer"), CHAINS)
def test_a_chain_of_expressions_states_its_value(patient, gold, answer):
    assert patient.verify(rf"\boxed{{{answer}}}", gold) is Verdict.CORRECT


@pytest.mark.parametrize(("gold", "answer"), NO_CHAINS)
def test_a_chain_that_fails_and_an_equation_state_nothing(patient, gold, answer):
    assert patient.verify(rf"\boxed{{{answer}}}", gold) is Verdict.WRONG


@pytest.mark.parametrize(("gold", "chain", "right", "wrong"), REFUTABLE)
def test_what_is_asked_of_the_workers(patient, gold, chain, right, wrong):
    right, wrong = chain.replace("{}", right), chain.replace("{}", wrong)
    assert patient.verify(rf"\boxed{{{right}}}", gold) is Verdict.CORRECT
    # neither the value nor, where it is the gold, the chain
    assert patient.verify(rf"\boxed{{{wrong}}}", gold) is Verdict.WRONG
    stated = wrong.rpartition("= ")[2]
    assert patient.verify(rf"\boxed{{{wrong}}}", stated) is Verdict.WRONG
    assert patient.verify(rf"\boxed{{{stated}}}", right) is Verdict.WRONG
    assert patient.verify(rf"\boxed{{{gold}}}", right) is Verdict.CORRECT


class Pool:
    def __init__(self, *outcomes):
        self.outcomes, self.asked = outcomes, []

    def compare(self, pairs):
        self.asked.append(list(pairs))
        return list(self.outcomes)


@pytest.mark.parametrize(
    ("answer", "outcome", "verdict", "late"),
    [
        # on its way to the value: wrong if refuted
        (r"\sum_{k=1}^{10} k = 55", "equal", Verdict.CORRECT, False),
        (r"\sum_{k=1}^{10} k = 55", "unknown", Verdict.CORRECT, False),
        (r"\sum_{k=1}^{10} k = 55", "timeout", Verdict.CORRECT, False),
        (r"\sum_{k=1}^{10} k = 55", "different", Verdict.WRONG, False),
        # the value itself: right if shown
        (r"\sum_{k=1}^{10} k", "equal", Verdict.CORRECT, False),
        (r"\sum_{k=1}^{10} k", "unknown", Verdict.WRONG, False),
        (r"\sum_{k=1}^{10} k", "timeout", Verdict.WRONG, True),
        # an equation, unless it is an identity
        (r"\sum_{k=1}^{n} k = 55", "equal", Verdict.CORRECT, False),
        (r"\sum_{k=1}^{n} k = 55", "unknown", Verdict.WRONG, False),
        (r"\sum_{k=1}^{n} k = 55", "timeout", Verdict.WRONG, True),
    ],
)
def test_an_undecided_doubt_leaves_the_value_an_undecided_value_does_not(answer, outcome, verdict, late):
    verifier = Verifier()
    verifier.__dict__["pool"] = pool = Pool(outcome)
    judgement = verifier.judge_batch([rf"\boxed{{{answer}}}"], ["55"])[0]
    assert (judgement.verdict, judgement.timed_out, verifier.counts.timeouts) == (verdict, late, late)
    assert len(pool.asked) == 1 and len(pool.asked[0]) == 1


def test_what_is_refuted_is_not_late():
    verifier = Verifier()
    verifier.__dict__["pool"] = Pool("timeout", "different")
    judgement = verifier.judge_batch([r"\boxed{\sum_{k=1}^{10} k = 55}"], [r"\int_0^{55} dx"])[0]
    assert (judgement.verdict, judgement.timed_out) == (Verdict.WRONG, False)


def test_only_a_chain_to_the_gold_is_asked_about_and_only_so_much_of_it():
    chain = " = ".join(rf"\sum_{{k=1}}^{{10}} {n}k" for n in range(1, 7))
    assert decide("55", chain + " = 56").open == ()
    asked = decide("55", chain + " = 55").open
    assert len(asked) == 2 and all(isinstance(pair, Doubt) for pair in asked)
    letters = " = ".join(rf"\sum_{{k=1}}^{{n}} {n}k" for n in range(1, 7))
    assert not decide("55", letters + " = 55").open and not decide("55", letters + " = 55").equal


whole = st.integers(-9, 9)


@given(st.lists(whole, min_size=9, max_size=9), st.lists(whole, min_size=9, max_size=9))
@settings(max_examples=60)
def test_determinants_multiply(one, two):
    product = [sum(one[3 * row + k] * two[3 * k + column] for k in range(3)) for row in range(3) for column in range(3)]
    assert determinant(product) == determinant(one) * determinant(two)
    assert determinant(one[3:6] + one[:3] + one[6:]) == -determinant(one)
    # Sarrus
    a, b, c, d, e, f, g, h, i = one
    assert determinant(one) == a * e * i + b * f * g + c * d * h - c * e * g - b * d * i - a * f * h


@given(st.integers(-50, 50), st.integers(0, 40), st.integers(-50, 50), st.integers(1, 60))
@settings(max_examples=60)
def test_remainders_are_those_of_whole_numbers(base, power, shift, modulus):
    found = exact(node(rf"(({base})^{{{power}}} + {shift}) \mod {modulus}"))
    assert found == (base**power + shift) % modulus


ABSOLUTE = [
    ("(-2,2)", "|x| < 2"), (r"(-\infty,-2)\cup(2,\infty)", "|z| > 2"), (r"(-\infty,-2]\cup[2,\infty)", r"2 \leq |z|"),
    ("|z| > 2", r"z > 2 \text{ or } z < -2"), ("-1 < x < 1", r"\lvert x \rvert < 1"), ("[2,4]", r"|x-3| \leq 1"),
    (r"(-2,-1)\cup(1,2)", "1 < |x| < 2"), (r"(-\infty,-3)\cup(2,\infty)", "|2x+1| > 5"), (r"\{0\}", r"|x| \leq 0"),
    (r"(-\infty,0)\cup(0,\infty)", "|x| > 0"), (r"\mathbb{R}", "|x| > -1"), (r"\emptyset", "|x| < -1"),
    ("(-3,2)", "|x-1| + |x+2| < 5"), ("[-2,1]", r"|x-1| + |x+2| \leq 3"), ("(-1,5)", "||x-2|-1| < 2"),
    (r"(-\infty,\frac12)", "|x| < |x-1|"), (r"(1-\pi,1+\pi)", r"|x-1| < \pi"), (r"\{x : |x-2| < 3\}", "(-1,5)"),
    (r"(-\infty,-2)\cup(-2,2)\cup(2,\infty)", r"|x| \neq 2"), ("|z| < 2", "|w| < 2"), ("|x| < |y|", "|y| > |x|"),
    # the length of a segment is a name
    ("AB < 5", "|AB| < 5"), (r"(-\infty,5)", "|AB| < 5"), ("(1,4)", "2 < x+1 < 5"),
    (r"(2,\infty)", r"2 < x < \infty"), (r"0<x<\sqrt2", "0<x<1.41421356"),
    (r"(-\infty,5)", "|A| < 5"),
]  # fmt: skip

NOT_ABSOLUTE = [
    ("|z| < 2", "z < 2"), ("|z| < 2", "(0,2)"), ("(-2,2)", "|x| > 2"), (r"(-\infty,-2]\cup[2,\infty)", "|z| > 2"),
    (r"(-\infty,-2)\cup(2,\infty)", "|z| < 2"), ("(-5,5)", "|AB| < 5"), ("x < a", "|x| < a"),
    (r"\theta < 3", r"|\theta| < 3"), (r"\{x : |x-2| < 3\}", "(-1,6)"), ("x > 3", "x(x-1)(x-2) + x > 3"),
    ("12", "|x| < 12"), ("(-3,2)", "|x-1| + |x+2| < 6"), (r"0 < x < \frac13", "0 < x < 0.33"), ("3", "||x"),
    # linear at -1, 2 and 5, and at 0, 1 and 2
    ("x < 7", "(x+1)(x-2)(x-5) + x > 3"), ("x > 3", "x(x-1)(x-2) + x > 3"), (r"(-\infty,2a)", "|x| < 2a"),
]  # fmt: skip

RULES = [
    (r"\{(x, 2x) \mid x \in \mathbb{R}\}", r"\{(t, 2t) \mid t \in \mathbb{R}\}"),
    (r"\{x^2 : x \in \mathbb{Z}\}", r"\{t^2 : t \in \mathbb{Z}\}"),
    (r"\{2i : i \in \mathbb{N}\}", r"\{2k \mid k \in \mathbb{N}\}"),
    (r"\{(x,y) \mid y = 2x\}", r"\{(t,s) \mid s = 2t\}"), (r"\{(x,y) \mid y = 2x\}", r"\{(x,y) \mid 2x - y = 0\}"),
    (r"\{(x,y) | x,y \in \mathbb{R}, x + 2y = 1\}", r"\{(s,t) : s,t \in \mathbb{R}, s + 2t = 1\}"),
    (r"\{ax | x \in \mathbb{R}\}", r"\{at : t \in \mathbb{R}\}"),
    (r"\{|x| | x \in \mathbb{Z}\}", r"\{|t| : t \in \mathbb{Z}\}"),
    (r"\{\begin{pmatrix} t \\ 2t \end{pmatrix} : t \in \mathbb{R}\}",
     r"\{\begin{pmatrix} s \\ 2s \end{pmatrix} : s \in \mathbb{R}\}"),
    (r"(t, 2t), t \in \mathbb{R}", r"(x, 2x), x \in \mathbb{R}"),
    (r"x = 2k\pi, k \in \mathbb{Z}", r"x = 2n\pi \quad (n \in \mathbb{Z})"),
    (r"\{2k+1 \mid k \in \mathbb{Z}\}", r"x = 2m+1, m \in \mathbb{Z}"), (r"\{2k+1 \mid k \in \mathbb{Z}\}", "2n+1"),
    (r"2k\pi", r"x = 2n\pi, n \in \mathbb{Z}"),
    (r"\{2k+1 | k \in \mathbb{Z}\} \cup \{0\}", r"\{2m+1 | m \in \mathbb{Z}\} \cup \{0\}"),
    (r"\{n \in \mathbb{Z} \mid n > 3\}", r"\{m \in \mathbb{Z} : m > 3\}"),
    (r"\{x \in \mathbb{R} | x > 3\}", r"(3,\infty)"), (r"\{x \mid x > 1, x < 3\}", "(1,3)"),
    ("12", r"12, x \in \mathbb{R}"),
    (r"\{x \in \mathbb{Z} | x > 3\}", "x > 3"),
]  # fmt: skip

OTHER_RULES = [
    (r"\{x^2 : x \in \mathbb{Z}\}", r"\{t^3 : t \in \mathbb{Z}\}"),
    (r"\{x^2 : x \in \mathbb{Z}\}", r"\{t^2 : t \in \mathbb{N}\}"),
    (r"\{2k+1 \mid k \in \mathbb{Z}\}", r"\{2m \mid m \in \mathbb{Z}\}"),
    (r"\{2k+1 \mid k \in \mathbb{Z}\}", r"k \in \mathbb{Z}"), (r"\{2k+1 \mid k \in \mathbb{Z}\}", r"\mathbb{Z}"),
    (r"\{(x,y) \mid y = 2x\}", r"\{(t,s) \mid t = 2s\}"), (r"\{(x,y) \mid y = 2x\}", r"\{(y,x) \mid y = 2x\}"),
    (r"\{(x,y) \mid y = 5\}", r"\{(x,y) \mid x = 5\}"), (r"\{(x,y) \mid y = 2x\}", "(a,b)"),
    (r"\{(t,2t) : t \geq 0\}", r"\{(x,2x) : x > 0\}"), (r"\{(t,2t) : t \geq 0\}", "(x,2x)"),
    # a letter that is free stays what it is
    ("(t, 2t)", "(x, 2x)"), ("2x+1", r"2t+1, t \in \mathbb{R}"),
    (r"\{ax | x \in \mathbb{R}\}", r"\{bx | x \in \mathbb{R}\}"),
    (r"\{ax | x \in \mathbb{R}\}", r"\{xt | t \in \mathbb{R}\}"),
    (r"\{x x | x \in \mathbb{R}\}", r"\{x t | t \in \mathbb{R}\}"), (r"\{x \in \mathbb{Z} | x > 3\}", r"(3,\infty)"),
    (r"(3,\infty)", r"\{x \in \mathbb{Z} | x > 3\}"), (r"\{x \in \mathbb{Z} | x > 3\}", "y"),
    (r"x = 2k\pi, k \in \mathbb{Z}", r"x = 2n\pi, n \in \mathbb{N}"),
    (r"x = 2k\pi, k \in \mathbb{Z}", r"x = k\pi, k \in \mathbb{Z}"), ("3", r"(k \in \mathbb{Z})"), ("3", r"\in) )"),
    (r"\{(x,y) | x > 0, y = 5\}", r"\{(x,y) | y > 0, x = 5\}"),
    (r"\{x \in \mathbb{Z} | x < 3\}", r"\{x \in \mathbb{N} | x < 3\}"),
]  # fmt: skip

COUNTS = [
    "infinitely many",
    r"\text{infinitely many solutions}",
    r"\text{an infinite number of solutions}",
    r"\text{infinite}",
]
COUNTLESS = [
    (count, answer) for count in COUNTS
    for answer in (r"\infty", r"+\infty", r"\text{infinitely many}", "infinite", r"\text{infinity}",
                   r"\infty \text{ solutions}")
]  # fmt: skip
COUNTABLE = [
    *((count, answer) for count in COUNTS
      for answer in (r"-\infty", r"(-\infty, \infty)", "1000", r"\mathbb{R}", r"\infty \text{ or } 3", r"\infty + 1",
                     r"\text{infinitely many or none}", r"\text{not infinitely many}", r"\text{finitely many}",
                     r"\text{infinitely many except primes}")),
    # a limit is no count
    (r"\infty", r"\text{infinitely many}"), (r"\infty", r"\text{infinite}"), (r"-\infty", r"\text{infinitely many}"),
    (r"\text{infinite discontinuity}", r"\infty"), ("5", "infinitely many"),
    (r"\text{infinitely many primes}", r"\text{infinitely many points}"),
    (r"(-\infty, \infty)", r"\text{infinitely many}"),
]  # fmt: skip

NEAR = r"2^{1/2^{1000}}"  # 1 + 6.5e-302
EXACT = [
    (NEAR, r"\sqrt[2^{1000}]{2}"), (rf"[0,{NEAR})", r"[0,2^{2^{-1000}})"), (rf"[0,{NEAR}]\cup[1,3]", "[0,3]"),
    (rf"x > {NEAR}", r"x > \sqrt{2^{1/2^{999}}}"), (r"[0,\sqrt2]", r"0 \leq x \leq \frac{2}{\sqrt2}"),
    ("0", r"\sin\pi"), (r"\sqrt{2}^{10000}", "2^{5000}"), (r"10^{200}\sqrt2 + 10^{200}", r"10^{200}(\sqrt2+1)"),
    (r"1+\sin\pi", "1"),
    (r"\frac{3\pi}{2} - \pi", r"\frac{\pi}{2}"), (r"[\sqrt2,\sqrt3]", r"[10^{20}+\sqrt2-10^{20}, \sqrt3]"),
]  # fmt: skip
INEXACT = [
    ("1", NEAR), ("[0,1)", f"[0,{NEAR})"), ("x > 1", f"x > {NEAR}"), (r"\{1\}", rf"\{{{NEAR}\}}"),
    ("[1,3]", rf"{NEAR} \leq x \leq 3"), (r"(-\infty,1)\cup(2,\infty)", r"(-\infty,1+10^{-20})\cup(2,\infty)"),
    ("(1,2)", r"1+10^{-40} < x < 2"), ("[0,3]", rf"[0,1)\cup({NEAR},3]"),
    (r"[0,1)\cup(1,3]", rf"[0,1)\cup({NEAR},3]"), (r"(0,\sqrt2)", r"(0,\sqrt2+10^{-60})"),
    (r"10^{60}+\sqrt2", r"10^{60}+\sqrt3"), ("0", r"10^{-50}\sqrt2"), (r"3 \cdot 10^{-50}", r"\pi \cdot 10^{-50}"),
    ("1", r"\cos(10^{-30})"), ("10^{-30}", r"\sin(10^{-30})"), ("1", "e^{10^{-60}}"), ("1", r"\sqrt{1+10^{-200}}"),
    ("0", r"\ln(1+10^{-80})"), ("1", "2^{1/2^{100000}}"), ("1", r"\sqrt[2^{1000}]{2}"),
    ("5", f"5+{PRIME}"), (r"\pi", rf"\pi+{PRIME}"), (r"\pi", rf"{PRIME}\pi + \pi"), (r"\pi", r"\pi^2"),
    (r"\frac{22}{7}", r"\pi"), (r"(0,\sqrt2)", r"(0, 10^{20}+\sqrt3-10^{20})"),
    ("0", r"10^{-90}\sqrt2"), ("10^{250}", r"\sqrt{10^{500}+1}"),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "answer"), [*ABSOLUTE, *RULES, *COUNTLESS, *EXACT])
def test_the_same_in_other_words(gold, answer):
    decision = decide(gold, answer)
    assert decision.equal and not decision.open


@pytest.mark.parametrize(("gold", "answer"), [*NOT_ABSOLUTE, *OTHER_RULES, *COUNTABLE, *INEXACT])
def test_not_the_same(gold, answer):
    decision = decide(gold, answer)
    assert not decision.equal and not decision.open


@given(
    st.lists(st.tuples(whole, whole, whole), min_size=1, max_size=3),
    whole,
    st.sampled_from(["<", "\\leq", ">", "\\geq", "\\neq"]),
)
@settings(max_examples=80)
def test_an_inequality_holds_where_it_is_said_to(terms, bound, sign):
    """a |b x + c| + ... against a bound, at all thirds from -7 to 7, and beyond every kink at +-1000."""
    left = " + ".join(f"({a})|({b})x + ({c})|" for a, b, c in terms)
    found = pieces(read(tokenize(f"{left} {sign} {bound}")))
    compare = {
        "<": Fraction.__lt__,
        "\\leq": Fraction.__le__,
        ">": Fraction.__gt__,
        "\\geq": Fraction.__ge__,
        "\\neq": Fraction.__ne__,
    }
    assert found is not None
    for x in [*(Fraction(third, 3) for third in range(-21, 22)), Fraction(-1000), Fraction(1000)]:
        value = sum((a * abs(b * x + c) for a, b, c in terms), Fraction(0))
        inside = any(
            (low == -math.inf or low.exact < x or (low_in and low.exact == x))
            and (high == math.inf or x < high.exact or (high_in and high.exact == x))
            for low, high, low_in, high_in in found
        )
        assert inside == compare[sign](value, Fraction(bound))


@given(st.integers(2, 50), st.integers(1, 30), st.integers(0, 250), st.sampled_from([-1, 0, 1]))
@settings(max_examples=80)
def test_constants_are_ordered_however_close(inside, times, digits, sign):
    root, near = rf"{times}\sqrt{{{inside}}}", rf"\sqrt{{{times * times * inside}}} + {sign} \cdot 10^{{-{digits}}}"
    assert order(node(near), node(root)) == sign == -order(node(root), node(near))
    assert same(node(near), node(root)) is (sign == 0)
    with mpmath.workdps(300):
        assert (times * mpmath.sqrt(inside) - mpmath.sqrt(times * times * inside)) < mpmath.mpf(10) ** -290


HOSTILE = {
    "bars": "|" * 1900,
    "bars and letters": "|x" * 900,
    "bars and signs": "||x|-1|+" * 200 + "x < 3",
    "many links": " < ".join(["|x|"] * 300),
    "roots for ends": " , ".join(rf"x > \sqrt2 + 10^{{-{n}}}" for n in range(20, 90)),
    "unions": r"\cup".join(rf"(\sqrt{{{n}}}, \sqrt{{{n}}} + 2^{{1/2^{{1000}}}})" for n in range(2, 60)),
    "digits beyond the cap": "+".join([r"2^{1/2^{1000}}\sin(1)"] * 100),
    "rule in rule": r"\{x | " * 60 + "x" + r"\}" * 60,
    "letters of a rule": r"\{abcdfghj|" + ",".join(rf"{x} \in \mathbb{{R}}" for x in "abcdfghj") + r"\}",
    "kinds": ", ".join(["x", *[r"k \in \mathbb{Z}"] * 200]),
    "parentheses": "(" * 600 + r"k \in \mathbb{Z}" + ")" * 600,
    "a large determinant": r"\begin{vmatrix}" + r" \\ ".join([" & ".join(["x"] * 30)] * 30) + r"\end{vmatrix}",
    "determinant in determinant": r"\begin{vmatrix}" * 30 + "1" + r"\end{vmatrix}" * 30,
    "remainders": r" \bmod ".join(["9^{9^{9}}"] * 100),
    "a tower's remainder": r"9^{9^{9^{9}}} \bmod 1000",
    "divisors": r"\gcd(" + ",".join(["10^{9999}"] * 300) + ")",
    "multiples": r"\operatorname{lcm}(" + ",".join(f"{n}^{{999}}" for n in range(2, 200)) + ")",
    "chains": " = ".join([r"\sum_{k=1}^{10^9} \frac{1}{k^2}"] * 40),
    "congruences": r" \equiv ".join(["9^{9^9}"] * 100) + r" \pmod 7",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_members_of_the_families_are_wrong_in_time(verifier, name):
    for gold in ("5", "x > 5", r"\{(x,y) | x, y \in \mathbb{R}\}"):
        start = time.thread_time()
        verdict = verifier.verify(rf"\boxed{{{HOSTILE[name]}}}", gold)
        assert time.thread_time() - start < 2.0, gold
        assert verdict is Verdict.WRONG
