r"""The words and signs that answers are made of, in lists."""

from __future__ import annotations


def _list(*texts: str) -> frozenset[str]:
    return frozenset(" ".join(texts).split())


FUNCTIONS = _list(
    "sin cos tan cot sec csc arcsin arccos arctan arccot sinh cosh tanh coth ln log lg exp sqrt max min det gcd lcm"
)
ONE_ARGUMENT = _list(r"\sin \cos \tan \cot \sec \csc \arcsin \arccos \arctan \arccot \sinh \cosh \tanh \coth \exp")
GREEK = _list(
    r"\alpha \beta \gamma \delta \epsilon \zeta \eta \theta \iota \kappa \lambda \mu \nu \xi \rho \sigma \tau",
    r"\upsilon \phi \chi \psi \omega \Gamma \Delta \Theta \Lambda \Xi \Pi \Sigma \Phi \Psi \Omega",
    r"\hbar \ell \ldots \odot \mho \omicron \bullet \star",
)
# commands that belong to no expression, known or not
NO_EXPRESSION = _list(r"\R \Z \N \Q \emptyset \varnothing \to \in \mid \quad \circ \land \lor \neg")
# letters that are a word even where letters would be factors
WORDS = _list("and or lbs hrs mins secs mph pct the is are yes odd day days year per all for any not USD kph")
# ... and only right after a number: mg may be m times g
SHORT_UNITS = _list("cm mm km kg mg ft in mi yd lb oz hr min sec am pm th st nd rd mL ml")
# what follows one of these comments on the answer
CLAUSES = _list("for where when whenever if with such as since because given provided which that respectively i.e. i.e")
# words that may lead in an answer
FILLER = _list(
    "approximately about roughly exactly answer is the are value values solution solutions of final result only",
    "therefore thus so hence total a an equals equal to in domain range interval set all real number numbers",
)
# words after a number that are no unit, since they take something back
HEDGES = _list(
    "or not isn't wrong incorrect false maybe perhaps possibly but either neither nor alternatively between to until",
    "unless and no never except instead rather if wait actually probably likely guess",
)
# first words after a number that make it another one
CHANGES = _list(
    "squared cubed factorial plus minus divided over multiplied halves thirds fourths fifths sixths sevenths eighths",
    "ninths tenths twelfths hundredths thousandths",
)
SCALES = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
PERCENT = frozenset(["percent", "pct", "percentage", "per cent", "percents", "percentage points"])
DEGREES = frozenset(["degree", "degrees", "deg", "degs"])
EMPTY = frozenset(["no solution", "no solutions", "none", "empty set", "no real solutions", "no real solution"])
NUMBER_WORDS = {
    word: number
    for number, word in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
    )
}

UNICODE = {
    "π": "\\pi ", "∞": "\\infty ", "°": "^\\circ ", "º": "^\\circ ", "≤": "\\leq ", "≥": "\\geq ", "≠": "\\neq ",
    "⩽": "\\leq ", "⩾": "\\geq ", "≈": "\\approx ", "×": "\\times ", "÷": "/", "·": "\\cdot ", "⋅": "\\cdot ",
    "∙": "\\cdot ", "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ",
    "±": "\\pm ", "∓": "\\mp ", "√": "\\sqrt ", "∛": "\\sqrt[3] ", "∠": "\\angle ", "θ": "\\theta ", "α": "\\alpha ",
    "β": "\\beta ", "γ": "\\gamma ", "δ": "\\delta ", "λ": "\\lambda ", "μ": "\\mu ", "ω": "\\omega ", "φ": "\\phi ",
    "ρ": "\\rho ", "σ": "\\sigma ", "τ": "\\tau ", "ε": "\\epsilon ", "Δ": "\\Delta ", "∅": "\\emptyset ", "ℝ": "\\R ",
    "⟨": "\\langle ", "⟩": "\\rangle ", "′": "'", "’": "'", "‘": "'", "″": "''", "∀": "\\forall ", "…": "\\ldots ",
    "⌊": "\\lfloor ", "⌋": "\\rfloor ", "⌈": "\\lceil ", "⌉": "\\rceil ", "∖": "\\setminus ", "、": ",", "⁄": "/",
    "½": "\\frac{1}{2}", "¼": "\\frac{1}{4}", "¾": "\\frac{3}{4}", "⅓": "\\frac{1}{3}", "⅔": "\\frac{2}{3}",
    "⅛": "\\frac{1}{8}", "：": ":", "，": ",", "；": ";", "（": "(", "）": ")", "％": "%", "￥": "", "¥": "", "€": "",
    "£": "", "“": '"', "”": '"', "ℤ": "\\Z ", "ℕ": "\\N ", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "∧": "\\land ",
}  # fmt: skip
