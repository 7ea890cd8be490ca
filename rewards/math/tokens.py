r"""From an answer as written to tokens: one spelling for each thing that has many.

``\left( \dfrac{1}{2},\,1{,}030 \right)``, ``(½, 1 030)`` and ``$(\frac12; 1030)$`` become comparable here. A token is

    "12.5"  a number          "\\frac"  a command      "x"       a letter
    "(" ...  a sign           '"miles'  words          Fraction  a number with a repeating decimal
    Based("204", 5)           Table(rows)  a matrix or array, its cells tokens again

Raises `Unreadable` beyond the caps: nothing after this module meets a text it could choke on.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

from rewards.math.vocabulary import FUNCTIONS, SHORT_UNITS, UNICODE, WORDS

MAX_TOKENS = 1_200
MAX_DIGITS = 400
MAX_DEPTH = 40


class Unreadable(ValueError):
    """A text that is not mathematics as far as these modules read it."""


class Foreign(Unreadable):
    """Well-formed as far as it was read, but with something these modules do not know: a sum, an integral."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells, each a tuple of tokens; kind: matrix (also array), determinant or cases (also aligned lines)."""

    rows: tuple
    kind: str


@dataclass(frozen=True, slots=True)
class Based:
    """A number with its base written as a subscript: digits as written."""

    digits: str
    base: int


Token = "str | Fraction | Based | Table"

OPENERS = frozenset(["(", "[", "{", "\\{", "\\langle", "\\lfloor", "\\lceil"])
CLOSERS = frozenset([")", "]", "}", "\\}", "\\rangle", "\\rfloor", "\\rceil"])

_NAMES = {
    **{name: "\\" + name for name in FUNCTIONS},
    "pi": "\\pi", "theta": "\\theta", "alpha": "\\alpha", "beta": "\\beta", "infty": "\\infty",
    "infinity": "\\infty", "inf": "\\infty", "Infinity": "\\infty", "asin": "\\arcsin", "acos": "\\arccos",
    "atan": "\\arctan", "mod": "\\mod", "log10": "\\lg", "frac": "\\frac", "cdot": "\\cdot", "times": "\\times",
    "pm": '"pm',
}  # fmt: skip
_UNICODE_TABLE = str.maketrans(UNICODE)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")

_TEXT = r"\\(?:text(?:bf|it|rm|sf|tt|normal|up|md)?|mbox|hbox|mathrm|operatorname\*?|rm|bf)(?![a-zA-Z])"
_PLAIN_STEPS = [
    (re.compile(r"\\(?:q?quad|[,;:!>\s]|hspace\*?\{[^{}]*\}|[vh]?phantom\{[^{}]*\})"), " "),
    (re.compile(r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|nolimits|hfill|"
                r"cr(?=\s*\\end)|thinspace|medspace|enspace|middle)(?![a-zA-Z])"), " "),
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\[dt]binom(?![a-zA-Z])"), r"\\binom"),
    (re.compile(r"\\(?:leqslant|leqq|le|lt(?=e))(?![a-zA-Z])"), r"\\leq "),
    (re.compile(r"\\(?:geqslant|geqq|ge)(?![a-zA-Z])"), r"\\geq "),
    (re.compile(r"\\lt(?![a-zA-Z])"), "<"),
    (re.compile(r"\\gt(?![a-zA-Z])"), ">"),
    (re.compile(r"\\(?:ne|not\s*=)(?![a-zA-Z])|!=|<>|≠"), r"\\neq "),
    (re.compile(r"\\infinity(?![a-zA-Z])"), r"\\infty "),
    (re.compile(r"<=|=<"), r"\\leq "),
    (re.compile(r">="), r"\\geq "),
    (re.compile(r"\\(?:mathbf|mathit|mathsf|mathcal|mathnormal|boldsymbol|bm|pmb|bold|textcolor\{\w+\}|color\{\w+\}|"
                r"underline|vec|overrightarrow|displaylines|ensuremath|mathbb(?=\s*\{?\s*[ABD-MOPS-Y]))(?![a-zA-Z])"),
     " "),
    (re.compile(r"\\math(?:bb|ds)\s*\{?\s*([RZNQC])\s*\}?"), r"\\\1 "),
    (re.compile(r"\\(?:degree|textdegree)(?![a-zA-Z])|\^\s*\{?\s*(?:\textcirc|\\textcirc|\textrm\{o\})\s*\}?|\^\s?extcirc"),
     r"^\\circ "),
    (re.compile(r"\^\s*\{\s*\\circ\s*\}|(?<!\^)\\circ(?=\s*(?:[CF]\s*)?\}*$)|\^\s*\\circ"), r"^\\circ "),
    (re.compile(r"(?:\{|^)([^{}]*)\\choose([^{}]*)(?:\}|$)"), r"\\binom{\1}{\2}"),
    (re.compile(r"\\(?:overline|widehat)\s*\{\s*([A-Z]{2,4})\s*\}|\\triangle(?![a-zA-Z])"), r"\1"),
    (re.compile(r"\\prime(?![a-zA-Z])"), "'"),
    (re.compile(r"\^\s*\{?\s*('+)\s*\}?"), r"\1"),
    (re.compile(r"\\(?:iff|implies|Rightarrow|rightarrow|to|Longrightarrow)(?![a-zA-Z])"), r"\\to "),
    (re.compile(r"\\(?:dots|cdots|dotsc|dotsb|dotsm|ldots)(?![a-zA-Z])|\.\.\.+"), r"\\ldots "),
    (re.compile(r"\\(?:cupdot|sqcup|bigcup)(?![a-zA-Z])"), r"\\cup "),
    (re.compile(r"\\(?:setminus|backslash|smallsetminus)(?![a-zA-Z])"), r"\\setminus "),
    (re.compile(r"\\(?:lvert|rvert|vert)(?![a-zA-Z])"), "|"),
    (re.compile(r"\\lbrace(?![a-zA-Z])"), r"\\{"),
    (re.compile(r"\\rbrace(?![a-zA-Z])"), r"\\}"),
    (re.compile(r"\\(?:varphi)(?![a-zA-Z])"), r"\\phi "),
    (re.compile(r"\\(?:varepsilon)(?![a-zA-Z])"), r"\\epsilon "),
    (re.compile(r"\\(?:thicksim|simeq|cong|doteq)(?![a-zA-Z])"), r"\\approx "),
]  # fmt: skip
_THOUSANDS = re.compile(r"(?<=\d)(?:\s*\{\s*,\s*\}\s*|\s*,\s*\\!\s*|\\[,!]\s*|~)(?=\d{3}(?!\d))")
_DELIMITERS = re.compile(r"\\[()\[\]]|\$|\*\*|`")
_MOD = re.compile(r"\\[pb]?mod(?![a-zA-Z])|" + _TEXT + r"\s*\{\s*mod\s*\}|(?<![a-zA-Z\\])mod(?![a-zA-Z])")
_MOD_IN_PARENTHESES = re.compile(r"\(\s*\\mod([^()]*)\)")
_DOUBLED = re.compile(r"\\\\(?=[a-zA-Z])")
_HTML = re.compile(r"<(su[pb])>(.{1,40}?)</\1>")
_INVISIBLE = re.compile(r"[\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff\x00-\x08\x0b-\x1f\x7f]")

_SCAN = re.compile(
    r"""(?P<space>\s+|~|&nbsp;)
    |(?P<repeat>\d*\.\d*\\overline\s*\{?\s*\d+\s*\}?)
    |(?P<based>\d[\dA-Fa-f]*\s*_\s*(?:\d+|\{\s*(?:\d+|two|three|four|five|six|seven|eight|nine|ten)\s*\}
        |\{\s*\\text\s*\{\s*(?:\d+|two|three|four|five|six|seven|eight|nine|ten)\s*\}\s*\}))
    |(?P<thousands>\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\d,]|\.\d))
    |(?P<spaced>\d{1,3}(?:\ \d{3})+(?:\.\d+)?(?!\d|\s*/))
    |(?P<number>(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,4}(?![\d.a-zA-Z]))?)
    |(?P<begin>\\begin\s*\{(?P<env>[a-zA-Z]+\*?)\}(?:\s*\{[lcr|\s]*\}|\s*\[[a-z]*\])?)
    |(?P<text>"""
    + _TEXT
    + r"""\s*\{)
    |(?P<command>\\[a-zA-Z]+|\\[{}%$\#&_|])
    |(?P<letters>[a-zA-Z]+)
    |(?P<sign>\*\*|[-+*/^_=<>(){}\[\]|,;:!'%?&@])
    |(?P<drop>[.$"\\])
    """,
    re.VERBOSE,
)
_BASES = dict(zip(["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"], range(2, 11), strict=True))
_MATHS_IN_TEXT = re.compile(r"(?:[-+\d./,:%^ ()\[\]=<>*]|(?<![a-zA-Z])[a-zA-Z](?![a-zA-Z]))+")
_TABLES = frozenset(
    (  # noqa: SIM905
        "matrix pmatrix bmatrix vmatrix Vmatrix Bmatrix array cases smallmatrix aligned align align* gathered split"
    ).split()
)
_KINDS = {
    **dict.fromkeys(["cases", "aligned", "align", "align*", "gathered", "split"], "cases"), "vmatrix": "determinant",
}  # fmt: skip
# names of functions that are no units or other words, as sec, min and log may be
_FUNCTION_WORDS = frozenset(["gcd", "lcm", "det"])


def is_word(token) -> bool:
    """Whether a token is words."""
    return token.__class__ is str and token[0] == '"'


def clean(text: str) -> str:
    """One spelling for unicode signs, spacing, fonts, delimiters and synonyms."""
    if not text.isascii():
        text = _INVISIBLE.sub("", text)
        text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+", lambda m: "^{" + m.group().translate(_SUPERSCRIPTS) + "}", text)
        text = re.sub(r"[₀₁₂₃₄₅₆₇₈₉]+", lambda m: "_{" + m.group().translate(_SUBSCRIPTS) + "}", text)
        text = re.sub(r"[①②③④⑤⑥⑦⑧⑨]+", lambda m: ",".join(str(ord(c) - 0x245F) for c in m.group()), text)
        text = unicodedata.normalize("NFKC", text.translate(_UNICODE_TABLE)).translate(_UNICODE_TABLE)
    elif "\x00" <= text[:1] < "\t":
        text = _INVISIBLE.sub("", text)
    if "{" in text or "\\" in text:
        text = _THOUSANDS.sub("", text)
    if "\\" in text or "$" in text:
        text = text.replace("\\\\", "\\cr ") if "\\begin" in text else _DOUBLED.sub(r"\\", text)
        text = text.replace("\\$", "").replace("\\%", "%")
        text = _DELIMITERS.sub(" ", text)
    elif "*" in text or "`" in text:
        text = text.replace("`", " ") if "**" not in text else re.sub(r"^\s*\*\*|\*\*\s*$|`", " ", text)
    if "\\" in text or "=" in text or "^" in text or "<" in text:
        text = _HTML.sub(lambda m: ("^{" if m.group(1) == "sup" else "_{") + m.group(2) + "}", text)
        for pattern, spelled in _PLAIN_STEPS:
            text = pattern.sub(spelled, text)
    if "mod" in text:
        text = _MOD_IN_PARENTHESES.sub(r"\\mod\1", _MOD.sub(r"\\mod ", text))
    return text.strip()


def tokenize(text: str, thousands: bool = True, depth: int = 0) -> tuple:
    """Tokens of a cleaned text; with ``thousands``, ``1,200`` outside brackets is one number.

    Raises:
        Unreadable: a sign that is no mathematics, or a text beyond the caps.
    """
    if depth > 4:
        raise Unreadable("text nested too deep")
    tokens: list = []
    at, level, end = 0, 0, len(text)
    scan = _SCAN.match
    while at < end:
        match = scan(text, at)
        if match is None:
            raise Unreadable(f"unexpected character {text[at]!r}")
        kind, piece = match.lastgroup, match.group()
        at = match.end()
        if kind == "space" or kind == "drop":
            continue
        if kind == "sign" or kind == "command":
            if piece == "**":
                piece = "^"
            elif piece == "\\%":
                piece = "%"
            if piece in OPENERS:
                level += 1
                if level > MAX_DEPTH:
                    raise Unreadable("nested too deep")
            elif piece in CLOSERS:
                level -= 1
            tokens.append(piece)
        elif kind == "number":
            tokens.append(_number(piece))
        elif kind == "letters":
            tokens.extend(_letters(piece, tokens))
        elif kind == "thousands":
            if thousands and level == 0:
                tokens.append(_number(piece.replace(",", "")))
            else:
                at = match.start() + piece.index(",")
                tokens.append(_number(piece[: piece.index(",")]))
        elif kind == "spaced":
            tokens.append(_number(piece.replace(" ", "")))
        elif kind == "repeat":
            tokens.append(_repeating(piece))
        elif kind == "based":
            if tokens and tokens[-1] == "^":
                piece = re.match(r"\d+", piece).group()
                at = match.start() + len(piece)
                tokens.append(_number(piece))
            else:
                tokens.append(_based(piece))
        elif kind == "begin":
            table, at = _table(text, match, depth)
            tokens.append(table)
        else:
            content, at = _group(text, at)
            tokens.extend(_words(content, depth))
        if len(tokens) > MAX_TOKENS:
            raise Unreadable("too long")
    return tuple(tokens)


def _number(piece: str) -> str:
    if len(piece) > MAX_DIGITS:
        raise Unreadable("too many digits")
    return piece


def _letters(run: str, before: list) -> list[str]:
    if run in _NAMES:
        return [_NAMES[run]]
    if len(run) == 1:
        return [run]
    if run in WORDS or run.lower() in ("and", "or") or (len(run) > 3 and not run.isupper()):
        return ['"' + run]
    if run in SHORT_UNITS and before and before[-1].__class__ is str and before[-1][0] in '0123456789.}"/':
        return ['"' + run]
    return list(run)


def _repeating(piece: str) -> Fraction:
    whole, _, rest = piece.partition(".")
    fixed, _, cycle = rest.partition("\\overline")
    fixed, cycle = fixed.strip(), cycle.strip(" {}")
    if len(fixed) + len(cycle) > MAX_DIGITS:
        raise Unreadable("too many digits")
    value = Fraction(int((whole or "0") + fixed), 10 ** len(fixed))
    return value + Fraction(int(cycle), (10 ** len(cycle) - 1) * 10 ** len(fixed))


def _based(piece: str) -> Based | str:
    digits, _, base = piece.partition("_")
    base = re.sub(r"\\text|[{}\s]", "", base)
    if len(digits) > MAX_DIGITS or (len(base) > 2 and base not in _BASES):
        raise Unreadable("too many digits")
    return Based(digits.strip().upper(), _BASES.get(base) or int(base))


def _group(text: str, at: int) -> tuple[str, int]:
    """Content up to the brace that closes the group opened just before ``at``."""
    level = 1
    for brace in re.finditer(r"\\.|[{}]", text[at:], re.DOTALL):
        level += (brace.group() == "{") - (brace.group() == "}")
        if level == 0:
            return text[at : at + brace.start()], at + brace.end()
    raise Unreadable("a group that does not close")


def _words(content: str, depth: int) -> list:
    stripped = content.strip()
    if not stripped:
        return []
    if stripped in _FUNCTION_WORDS:
        return ["\\" + stripped]
    if _MATHS_IN_TEXT.fullmatch(stripped):
        return list(tokenize(stripped, depth=depth + 1))
    tokens: list = []
    before = after = ""
    if stripped[0] in ",;":
        before, stripped = stripped[0], stripped[1:].strip()
    if stripped[-1:] in (",", ";"):
        after, stripped = stripped[-1], stripped[:-1].strip()
    if before:
        tokens.append(before)
    joined = re.fullmatch(r"(?:(?P<head>.*?)[\s,]+)??(?P<join>and|or)", stripped, re.IGNORECASE | re.DOTALL)
    if joined:
        if joined.group("head"):
            tokens.append('"' + joined.group("head"))
        tokens.append('"' + joined.group("join").lower())
    elif stripped:
        led = re.fullmatch(r"(?P<join>and|or)\s+(?P<rest>.+)", stripped, re.IGNORECASE | re.DOTALL)
        tokens.extend(['"' + led.group("join").lower(), '"' + led.group("rest")] if led else ['"' + stripped])
    if after:
        tokens.append(after)
    return tokens


def _table(text: str, match: re.Match, depth: int) -> tuple[Table, int]:
    name = match.group("env")
    if name not in _TABLES:
        raise Unreadable(f"environment {name}")
    level, start, close = 1, match.end(), None
    for mark in re.finditer(r"\\(begin|end)\s*\{[a-zA-Z]+\*?\}", text[start:]):
        level += 1 if mark.group(1) == "begin" else -1
        if level == 0:
            close = mark
            break
    if close is None:
        raise Unreadable("an environment that does not end")
    body = text[start : start + close.start()]
    if "\\begin" in body:
        rows = ((tokenize(body, False, depth + 1),),)
    else:
        body = body.replace("\\hline", "")
        rows = tuple(
            tuple(tokenize(cell, False, depth + 1) for cell in re.split(r"(?<!\\)&", row))
            for row in re.split(r"\\cr(?![a-zA-Z])(?:\s*\[[^\]]{0,8}\])?", body)
            if row.strip()
        )
    return Table(rows, _KINDS.get(name, "matrix")), start + close.end()


def split_top(tokens: tuple, separators) -> list[tuple]:
    """Split at separators outside brackets; intervals may open and close with different brackets."""
    parts, level, last = [], 0, 0
    for index, token in enumerate(tokens):
        if token.__class__ is not str:
            continue
        if token in OPENERS:
            level += 1
        elif token in CLOSERS:
            level -= 1
        elif level == 0 and token in separators:
            parts.append(tokens[last:index])
            last = index + 1
    parts.append(tokens[last:])
    return parts


def closes_at(tokens: tuple, start: int) -> int:
    """Index of the bracket that closes the one at ``start``; -1 when there is none."""
    level = 0
    for index in range(start, len(tokens)):
        token = tokens[index]
        if token.__class__ is not str:
            continue
        if token in OPENERS:
            level += 1
        elif token in CLOSERS:
            level -= 1
            if level == 0:
                return index
    return -1
