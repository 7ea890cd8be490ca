r"""Are two answers the same? Decided by structure and exact arithmetic; the rest is left to the symbolic workers.

Decided once, with reasons, tested in tests/test_verifier_policies.py:

- **Every value asked for, and no other.** A list or set equals another with the same members in any order, a tuple
  one in the same order; `1, 2` is not `1`, ``\pm 2`` is not 2, an interval around a number is not the number.
- **A chain must hold.** ``15 = 16`` and ``80 \approx 81`` contradict themselves: they equal nothing. Where a chain
  holds, any of its members may match.
- **Names are not graded**: x = 16 answers 16, f(x) = x answers f(z) = z. Values named alike are compared name by name.
- **Exact means exact.** A decimal stands for an exact value from six significant digits on, if it is that value
  rounded or cut; fewer digits are another number.
- **Units are not graded unless both name one**: 5 cm answers 5 and 500 cm answers 5 m, but 5 cm does not answer 5 m.
  A percentage of the gold may be given as 25\%, 25 or 1/4; degrees as 45, 45^\circ or \pi/4.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rewards.extract import extract
from rewards.leaves import Outcome, same_leaf
from rewards.realsets import as_interval, is_set, pieces, same_set
from rewards.relations import bare_values, same_relation, solves
from rewards.structure import Grid, Group, Leaf, Relation, Union, Value, read, spelled
from rewards.tokens import Unreadable, clean, tokenize

MAX_TEXT = 4_000
MAX_OPEN = 400
_INTEGER = re.compile(r"[-+]?\d{1,18}")
_COMMA_NUMBER = re.compile(r"\d,\d{3}(?!\d)")
_TIME = re.compile(
    r"(\d{1,2}):(\d{2})(?::(\d{2}))?\s*(?:\\text|\\mathrm|\\mbox)?\s*\{?\s*([ap])?\.?\s*(m)?\.?\s*\}?", re.I
)


@dataclass(frozen=True, slots=True)
class Decision:
    """equal: the verdict, unless ``open`` holds pairs (gold, answer) that must all be symbolically equal for it."""

    equal: bool
    rule: str
    open: tuple[tuple[str, str], ...] = ()


def readable(gold: str) -> bool:
    """Whether a gold can be graded against at all: it is a text that says something."""
    if not isinstance(gold, str) or len(gold) > 200_000:
        return False
    text = gold_text(gold) if "\\boxed" in gold or "\\fbox" in gold else gold
    return any(character.isalnum() for character in text) or any(sign in text for sign in "∞∅πℝ①②③④⑤⑥⑦⑧⑨")


def gold_text(gold: str) -> str:
    """The answer in a gold, which may be a whole solution."""
    if "\\boxed" in gold or "\\fbox" in gold or (len(gold) > 250 and gold.count(" ") > 30):
        found = extract(gold).text
        return found or gold
    return gold


def decide(gold: str, answer: str) -> Decision:
    """Compare a gold with an extracted answer. Never raises for their content."""
    gold, answer = gold.strip(), answer.strip()
    if _INTEGER.fullmatch(gold) and _INTEGER.fullmatch(answer):
        return Decision(int(gold) == int(answer), "integers")
    gold = gold_text(gold)
    if gold == answer:
        return Decision(True, "same text")
    gold, answer = _unwrapped(gold), _unwrapped(answer)
    if gold == answer:
        return Decision(True, "same text")
    if len(gold) > MAX_TEXT or len(answer) > MAX_TEXT:
        return Decision(False, "too long to compare")
    time = _same_time(gold, answer)
    if time is not None:
        return Decision(time, "times of day")
    gold, answer = clean(gold), clean(answer)
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
    outcome = equal(gold_value, answer_value)
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
    return {Grid: "matrix", Relation: "relation", Union: "union"}[type(value)]


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


def _same_time(gold: str, answer: str) -> bool | None:
    one, two = _TIME.fullmatch(gold.strip(" .$")), _TIME.fullmatch(answer.strip(" .$"))
    if one is None or two is None:
        return None
    half_one, half_two = one.group(4), two.group(4)
    minutes = [
        (int(time.group(1)) % 12 + 12 * (half.lower() == "p") if half else int(time.group(1))) * 60 + int(time.group(2))
        for time, half in ((one, half_one), (two, half_two))
    ]
    seconds = [int(time.group(3) or 0) for time in (one, two)]
    if seconds[0] != seconds[1] or one.group(2) != two.group(2):
        return False
    if bool(half_one) != bool(half_two):
        return minutes[0] == minutes[1] or one.group(1).lstrip("0") == two.group(1).lstrip("0")
    return minutes[0] == minutes[1]


def equal(gold: Value, answer: Value) -> Outcome:
    """True, False, or the pairs of expressions on which it depends."""
    if (
        isinstance(gold, Leaf)
        and isinstance(answer, Leaf)
        and not _has_sign_choice(gold)
        and not _has_sign_choice(answer)
    ):
        return same_leaf(gold, answer)
    if is_set(gold) or is_set(answer):
        as_sets = _equal_sets(gold, answer)
        if as_sets is not None:
            return as_sets
    if isinstance(gold, Relation) or isinstance(answer, Relation):
        return _equal_relations(gold, answer)
    if isinstance(gold, Union) or isinstance(answer, Union):
        return _equal_unions(gold, answer)
    return _equal_groups(_expanded(gold), _expanded(answer))


def _equal_sets(gold: Value, answer: Value) -> Outcome | None:
    one, two = pieces(gold), pieces(answer)
    if one is not None and two is not None:
        return same_set(one, two)
    intervals = [_interval_of(value) for value in (gold, answer)]
    if all(interval is not None for interval in intervals):
        return _equal_groups(*intervals)
    return None


def _interval_of(value: Value) -> Value | None:
    if isinstance(value, Relation):
        if value.ops == ("\\in",):
            try:
                return _interval_of(read(value.parts[1]))
            except Unreadable:
                return None
        return as_interval(value)
    return value if isinstance(value, Group) and value.kind == "tuple" else None


def _equal_relations(gold: Value, answer: Value) -> Outcome:
    golds, answers = bare_values(gold, equal), bare_values(answer, equal)
    if golds is None or answers is None:
        return False
    best: Outcome = False
    # the values of a gold chain are alternatives; an answer's chain holds, so that its first value stands for all
    for one in golds:
        for two in answers:
            outcome = equal(*_renamed(one, two))
            if outcome is True:
                return True
            best = best or outcome
    if isinstance(gold, Relation) and isinstance(answer, Relation):
        return same_relation(gold, answer) or best
    if isinstance(gold, Relation) and isinstance(answer, Leaf) and solves(gold, answer):
        return True
    return best


def _renamed(one, two):
    """Values of two functions, f(x) = ... and f(m) = ..., with one argument's name."""
    return one[1], (two[1] if not one[0] or not two[0] or one[0] == two[0] else _with_argument(two, one[0]))


def _with_argument(labelled, name: str) -> Value:
    label, value = labelled
    if not isinstance(value, Leaf) or value.node is None:
        return value
    from rewards.numeric import substitute

    return Leaf(value.tokens, substitute(value.node, label, ("v", name)), value.unit, value.words)


def _equal_unions(gold: Value, answer: Value) -> Outcome:
    if not (isinstance(gold, Union) and isinstance(answer, Union)) or len(gold.without) != len(answer.without):
        return False
    parts = _matched(gold.parts, answer.parts)
    without = _matched(gold.without, answer.without) if gold.without else True
    return _both(parts, without)


def _equal_groups(gold: Value, answer: Value) -> Outcome:
    if isinstance(gold, Grid) and isinstance(answer, Grid):
        if [len(row) for row in gold.rows] != [len(row) for row in answer.rows]:
            return False
        return _in_order(sum(gold.rows, ()), sum(answer.rows, ()))
    for one, two in ((gold, answer), (answer, gold)):
        if isinstance(one, Grid):
            cells = sum(one.rows, ())
            vector = min(len(one.rows), len(one.rows[0]) if one.rows else 0) == 1
            if not vector or not isinstance(two, Group) or two.kind == "set" or len(cells) != len(two.items):
                return False
            return _in_order(cells, two.items) if one is gold else _in_order(two.items, cells)
    if not isinstance(gold, Group) or not isinstance(answer, Group):
        return _equal_single(gold, answer)
    return _equal_members(gold, answer)


def _equal_single(gold: Value, answer: Value) -> Outcome:
    """A group against something that is no group."""
    for one, two in ((gold, answer), (answer, gold)):
        if isinstance(one, Group):
            if one.kind == "ratio":
                quotient = _quotient(one)
                if quotient is not None and isinstance(two, Leaf):
                    return equal(quotient, two) if one is gold else equal(two, quotient)
                return False
            if one.kind == "set" and len(one.items) == 1:
                return equal(one.items[0], two) if one is gold else equal(two, one.items[0])
            return False
    return same_leaf(gold, answer) if isinstance(gold, Leaf) and isinstance(answer, Leaf) else False


def _quotient(ratio: Group) -> Leaf | None:
    if len(ratio.items) != 2:
        return None
    return Leaf((), ("/", ratio.items[0].node, ratio.items[1].node))


def _equal_members(gold: Group, answer: Group) -> Outcome:
    kinds = {gold.kind, answer.kind}
    if "ratio" in kinds:
        if kinds != {"ratio"} or len(gold.items) != len(answer.items):
            return False
        pairs = zip(gold.items[1:], answer.items[1:], strict=True)
        return all(
            equal(Leaf((), ("/", gold.items[0].node, one.node)), Leaf((), ("/", answer.items[0].node, two.node)))
            is True
            for one, two in pairs
        )
    if "tuple" in kinds:
        if "set" in kinds or len(gold.items) != len(answer.items):
            return False
        if (
            kinds == {"tuple"}
            and len(gold.items) == 2
            and "[" in (gold.opener, answer.opener, gold.closer, answer.closer)
        ):
            # an interval's ends belong to it
            if (gold.opener, gold.closer) != (answer.opener, answer.closer):
                return False
        return _in_order(gold.items, answer.items)
    named = _by_name(gold), _by_name(answer)
    if all(named) and set(named[0]) == set(named[1]) and len(named[0]) == len(gold.items) == len(answer.items):
        return _in_order(list(named[0].values()), [named[1][name] for name in named[0]])
    if "set" in kinds or len(gold.items) < len(answer.items):
        # a value given twice is given once
        return _matched(_distinct(gold.items), _distinct(answer.items))
    return _matched(gold.items, answer.items)


def _by_name(group: Group) -> dict[str, Value]:
    return {spelled(item.parts[0]): item for item in group.items if isinstance(item, Relation) and item.ops == ("=",)}


def _distinct(items) -> tuple:
    kept: list = []
    for item in items:
        if len(items) > 60 or not any(equal(item, other) is True for other in kept):
            kept.append(item)
    return tuple(kept)


def _in_order(golds, answers) -> Outcome:
    outcome: Outcome = True
    for one, two in zip(golds, answers, strict=True):
        outcome = _both(outcome, equal(one, two))
        if outcome is False:
            return False
    return outcome


def _matched(golds, answers) -> Outcome:
    """Every member of one has its own equal in the other."""
    if len(golds) != len(answers):
        return False
    left = list(answers)
    open_golds = []
    for gold in golds:
        for index, answer in enumerate(left):
            if equal(gold, answer) is True:
                del left[index]
                break
        else:
            open_golds.append(gold)
    if not open_golds:
        return True
    # what is undecided is matched in the order given
    return _in_order(open_golds, left)


def _both(one: Outcome, two: Outcome) -> Outcome:
    if one is False or two is False:
        return False
    if one is True:
        return two
    return one if two is True else one + two


def _has_sign_choice(leaf: Leaf) -> bool:
    return "\\pm" in leaf.tokens or "\\mp" in leaf.tokens


def _expanded(value: Value) -> Value:
    r"""Each \pm written out: 1 \pm x as two values, (\pm 1, \pm 2) as four pairs."""
    if isinstance(value, Leaf):
        both = _signs(value)
        return Group("list", both) if len(both) > 1 else both[0]
    if isinstance(value, Group) and value.kind in ("list", "set"):
        items = []
        for item in value.items:
            wide = _expanded(item) if not isinstance(item, Relation) else _relation_signs(item)
            items.extend(wide.items if isinstance(wide, Group) and wide.kind == "list" and wide is not item else [wide])
        return value if len(items) == len(value.items) else Group(value.kind, tuple(items), value.opener, value.closer)
    if isinstance(value, Group) and value.kind == "tuple":
        rows: list[tuple] = [()]
        for item in value.items:
            choices = _signs(item) if isinstance(item, Leaf) else (item,)
            rows = [(*row, choice) for row in rows for choice in choices]
            if len(rows) > 64:
                return value
        if len(rows) > 1:
            return Group("list", tuple(Group("tuple", row, value.opener, value.closer) for row in rows))
    return value


def _relation_signs(relation: Relation) -> Value:
    last = relation.parts[-1]
    if relation.ops != ("=",) or not ("\\pm" in last or "\\mp" in last):
        return relation
    try:
        value = read(last)
    except Unreadable:
        return relation
    return _expanded(value) if isinstance(value, Leaf) else relation


def _signs(leaf: Leaf) -> tuple[Leaf, ...]:
    """The two readings of a leaf with a choice of sign; one when it is the same number twice."""
    if not _has_sign_choice(leaf) or leaf.node is None:
        return (leaf,)
    upper, lower = (Leaf((), _chosen(leaf.node, sign), leaf.unit) for sign in "+-")
    return (upper,) if same_leaf(upper, lower) is True else (upper, lower)


def _chosen(node: tuple, sign: str) -> tuple:
    if node[0] in ("pm", "mp"):
        first, second = _chosen(node[1], sign), _chosen(node[2], sign)
        return ("+" if (node[0] == "pm") == (sign == "+") else "-", first, second)
    return tuple(
        _chosen(part, sign) if part.__class__ is tuple and part and part[0].__class__ is str else part for part in node
    )
