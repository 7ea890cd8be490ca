"""Are two texts the same answer? Caps and spellings first, then the structure of both; what stays open is symbolic."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rewards.math.equal import Comparison, Overtime
from rewards.math.extract import gold_text
from rewards.math.set_builder import Family
from rewards.math.tokens import Unreadable, clean, tokenize
from rewards.math.values import Grid, Group, Leaf, Relation, Union, Value, read, spelled

MAX_TEXT = 4_000
MAX_OPEN = 400
_COMMA_NUMBER = re.compile(r"\d,\d{3}(?!\d)")
_TIME = re.compile(
    r"(\d{1,2})(?::(\d{2}))?(?::(\d{2}))?\s*(?:\\text|\\mathrm|\\mbox)?\s*\{?\s*([ap])?\.?\s*(m)?\.?\s*\}?", re.I
)
_WRAPPER = r"(?:\\(?:text\w*|mathrm|mathbf|mbox)\s*\{\s*)?"
_JOIN = r"(?:\\text\s*\{\s*)?\b(?:or|and)\b"
_CHOICE = re.compile(
    _WRAPPER + r"(?:\(([A-J])\)|([A-J])\s*[.):])\s*\}?[\s.:~]*(?![,;\s.:~]|" + _JOIN + r")(?:(?!" + _JOIN + r")[^,;])+"
)
_LETTER = re.compile(_WRAPPER + r"\(?\s*([A-J])\s*\)?\.?\s*\}?\.?")


@dataclass(frozen=True, slots=True)
class Decision:
    """equal: the verdict, unless ``open`` holds pairs of formulas that must all be symbolically equal for it; a `Doubt`
    among them must only not be shown to differ.

    late: the comparison was broken off.
    """

    equal: bool
    rule: str
    open: tuple[tuple[str, str], ...] = ()
    late: bool = False


def decide(gold: str, answer: str) -> Decision:
    """Compare a gold with an extracted answer. Never raises for their content."""
    gold, answer = (_unwrapped(" ".join(text.split())) for text in (gold_text(gold.strip()), answer))
    if gold == answer:
        return Decision(True, "same text")
    if len(gold) > MAX_TEXT or len(answer) > MAX_TEXT:
        return Decision(False, "too long to compare")
    times = _same_time(gold, answer)
    if times is not None:
        return Decision(times, "times of day")
    gold, answer = clean(gold), clean(answer)
    choice = _same_choice(gold, answer)
    if choice:
        return Decision(True, "choice letters")
    first = _decide_read(gold, answer, True, True)
    if not first.equal and not first.open:
        for text, thousands in ((gold, (False, True)), (answer, (True, False)), (gold + answer, (False, False))):
            if _COMMA_NUMBER.search(text):
                other = _decide_read(gold, answer, *thousands)
                if other.equal:
                    return other
    return first


def _decide_read(gold: str, answer: str, gold_thousands: bool, answer_thousands: bool) -> Decision:
    try:
        gold_tokens = tokenize(gold, gold_thousands)
        answer_tokens = tokenize(answer, answer_thousands)
        if spelled(gold_tokens) == spelled(answer_tokens):
            return Decision(bool(gold_tokens), "same spelling")
        gold_value, answer_value = read(gold_tokens), read(answer_tokens)
    except (Unreadable, RecursionError) as error:
        same = _letters(gold) == _letters(answer) != ""
        return Decision(same, "same signs" if same else f"not readable: {error}"[:120])
    try:
        outcome = Comparison().equal(gold_value, answer_value)
    except Overtime:
        return Decision(False, "took too long to compare", late=True)
    except RecursionError:
        return Decision(False, "nested too deep to compare")
    if outcome is True or outcome is False:
        return Decision(outcome, f"{_kind(gold_value)} and {_kind(answer_value)} compared")
    if sum(len(one) + len(two) for one, two in outcome) > MAX_OPEN or len(outcome) > 8:
        return Decision(False, "too long for the symbolic workers")
    return Decision(False, "symbolic", outcome)


def _kind(value: Value) -> str:
    if isinstance(value, Group):
        return value.kind
    if isinstance(value, Leaf):
        return "expression" if value.node else "words" if value.words else "formula"
    return {Grid: "matrix", Relation: "relation", Union: "union", Family: "family"}[type(value)]


def _unwrapped(text: str) -> str:
    """Without the braces around everything, however many (a hostile nest is peeled, not parsed)."""
    text = text.strip().strip("$").strip()
    start, end = 0, len(text)
    while end - start > 1 and text[start] == "{" and text[end - 1] == "}":
        start, end = start + 1, end - 1
    inner = text[start:end]
    if start and inner.count("{") == inner.count("}"):
        text = inner
    for left, right in (("\\left|", "\\right|"), ("|", "|")):
        count = 0
        while text.startswith(left, count * len(left)) and text.endswith(right, 0, len(text) - count * len(right)):
            count += 1
        if count > 1 and len(text) > count * (len(left) + len(right)):
            text = text[(count - 1) * len(left) : len(text) - (count - 1) * len(right)]
    return text


def _letters(text: str) -> str:
    return re.sub(r"\\(?:text\w*|mathrm|mbox|left|right)|[\s{}$\\]", "", text)


def _same_choice(gold: str, answer: str) -> bool:
    """Whether one is a choice with its text, (B) 12, and the other its letter."""
    for whole, letter in ((gold, answer), (answer, gold)):
        choice, alone = _CHOICE.fullmatch(whole), _LETTER.fullmatch(letter)
        if choice and alone and (choice.group(1) or choice.group(2)) == alone.group(1):
            return True
    return False


def _same_time(gold: str, answer: str) -> bool | None:
    one, two = _TIME.fullmatch(gold.strip(" .$")), _TIME.fullmatch(answer.strip(" .$"))
    if one is None or two is None or not all(time.group(2) or time.group(4) for time in (one, two)):
        return None
    half_one, half_two = one.group(4), two.group(4)
    minutes = [
        (int(time.group(1)) % 12 + 12 * (half.lower() == "p") if half else int(time.group(1))) * 60
        + int(time.group(2) or 0)
        for time, half in ((one, half_one), (two, half_two))
    ]
    seconds = [int(time.group(3) or 0) for time in (one, two)]
    if seconds[0] != seconds[1] or int(one.group(2) or 0) != int(two.group(2) or 0):
        return False
    if bool(half_one) != bool(half_two):
        return minutes[0] == minutes[1] or one.group(1).lstrip("0") == two.group(1).lstrip("0")
    return minutes[0] == minutes[1]
