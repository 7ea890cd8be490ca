r"""What kind of answer a text is: a number with its unit, words, a list, tuple, set, interval, matrix or relation.

`read` turns tokens into one of

    Leaf      an expression with a unit, or words, or something only its spelling is known of
    Group     a list (1, 2), tuple or interval ((1, 2], set \{1, 2\} or ratio 1:2
    Grid      a matrix, column or system, cells read one by one
    Relation  x = 5, 2 < x \leq 3, x \in S, a chain of such
    Union     sets put together or taken away: (0, 1) \cup (2, 3), \R \setminus \{0\}
    Family    a set given by a rule: \{2k + 1 \mid k \in \Z\}
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from rewards.math.parser import parse
from rewards.math.quantity_names import is_label
from rewards.math.set_builder import Family, beside, ruled, split_rule
from rewards.math.tokens import CLOSERS, OPENERS, Based, Foreign, Table, Unreadable, closes_at, is_word, split_top
from rewards.math.unit_suffix import angle, measured
from rewards.math.vocabulary import CLAUSES, EMPTY, FILLER

RELATIONS = frozenset(["=", "<", ">", "\\leq", "\\geq", "\\neq", "\\approx", "\\in", "\\equiv", "\\sim"])
_MAX_ITEMS = 400


@dataclass(frozen=True, slots=True)
class Leaf:
    """tokens as written; node: the expression, None when it cannot be read; unit: "", "%", "deg" or words.

    foreign: unread only because it holds something unknown here, which a symbolic worker may know.
    """

    tokens: tuple
    node: tuple | None = None
    unit: str = ""
    words: str = ""
    foreign: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """kind: list, tuple, set or ratio; opener and closer tell an interval's ends; joined: ",", "and" or "or"."""

    kind: str
    items: tuple
    opener: str = ""
    closer: str = ""
    joined: str = ","


@dataclass(frozen=True, slots=True)
class Grid:
    rows: tuple
    kind: str = "matrix"


@dataclass(frozen=True, slots=True)
class Relation:
    """parts as tokens, one more than ops."""

    parts: tuple
    ops: tuple


@dataclass(frozen=True, slots=True)
class Union:
    parts: tuple
    without: tuple = ()


Value = Leaf | Group | Grid | Relation | Union | Family


def read(tokens: tuple, depth: int = 0) -> Value:
    """The value that tokens spell.

    Raises:
        Unreadable: nested too deep, or nothing there.
    """
    if depth > 12:
        raise Unreadable("nested too deep")
    tokens = _without_prose(_trimmed(tokens))
    if not tokens:
        raise Unreadable("nothing there")
    if tokens in (("\\emptyset",), ("\\varnothing",)):
        return Leaf(tokens, words="empty set")
    if _is_words(tokens):
        return _words_leaf(tokens)
    if tokens[0] == "\\{" and tokens[1:2] and tokens[1].__class__ is Table and len(tokens) == 2:
        return _grid(Table(tokens[1].rows, "cases"), depth)
    if len(tokens) > 4 and tokens[-2:] in (("^", "T"), ("^", "\\top")) and closes_at(tokens, 0) == len(tokens) - 3:
        tokens = tokens[:-2]
    several = _several(tokens, depth)
    if several is not None:
        return several
    relation = _relation(tokens)
    if relation is not None:
        return relation
    joined = _union(tokens, depth)
    if joined is not None:
        return joined
    if tokens[0].__class__ is str and tokens[0] in OPENERS and closes_at(tokens, 0) == len(tokens) - 1:
        bracketed = _bracketed(tokens, depth)
        if bracketed is not None:
            return bracketed
    if len(tokens) == 1 and tokens[0].__class__ is Table and tokens[0].kind != "determinant":
        return _grid(tokens[0], depth)
    ratio = _ratio(tokens)
    return ratio if ratio is not None else _leaf(tokens)


def spelled(tokens: tuple) -> str:
    """Tokens as one canonical string; groups of a single token lose their braces."""
    pieces = [token if token.__class__ is str else _spelled_token(token) for token in tokens]
    index = 0
    while index + 2 < len(pieces):
        if pieces[index] == "{" and pieces[index + 2] == "}":
            pieces[index : index + 3] = [pieces[index + 1]]
        index += 1
    return " ".join(pieces)


def latex(tokens: tuple) -> str:
    """Tokens as LaTeX again, for a reader that knows more of it."""
    pieces = []
    for token in tokens:
        if token.__class__ is Table:
            rows = " \\\\ ".join(" & ".join(latex(cell) for cell in row) for row in token.rows)
            name = "vmatrix" if token.kind == "determinant" else "pmatrix"
            pieces.append(f"\\begin{{{name}}} {rows} \\end{{{name}}}")
        elif token.__class__ is Based:
            pieces.append(f"{token.digits}_{{{token.base}}}")
        elif token.__class__ is Fraction:
            pieces.append(f"\\frac{{{token.numerator}}}{{{token.denominator}}}")
        else:
            pieces.append(f"\\text{{{token[1:]}}}" if token[0] == '"' else token)
    return " ".join(pieces)


def _spelled_token(token) -> str:
    if token.__class__ is Table:
        return "[" + ";".join(",".join(spelled(cell) for cell in row) for row in token.rows) + "]"
    return f"{token.digits}_{token.base}" if token.__class__ is Based else str(token)


def _trimmed(tokens: tuple) -> tuple:
    """Without punctuation at the ends and without braces around everything."""
    while tokens:
        if tokens[-1] in (",", ";", ":", "'", "!", "?", "&") and (tokens[-1] not in ("!", "'") or len(tokens) == 1):
            tokens = tokens[:-1]
        elif tokens[0] in (",", ";", "\\forall", "&", ":", "\\to", "\\land", "\\therefore"):
            tokens = tokens[1:]
        elif (tokens[0] == "{" and closes_at(tokens, 0) == len(tokens) - 1) or (
            len(tokens) > 3 and tokens[0] == tokens[1] == "|" == tokens[-1] == tokens[-2]
        ):
            tokens = tokens[1:-1]
        else:
            break
    return tokens


def _without_prose(tokens: tuple) -> tuple:
    """Without words that lead in ("approximately") and without a clause that follows ("for all x")."""
    first = 0
    while (
        first < len(tokens)
        and is_word(tokens[first])
        and set(tokens[first][1:].lower().strip(" ,.:").split()) <= FILLER
    ):
        first += 1
    if 0 < first < len(tokens):
        tokens = tokens[first:]
    level = 0
    for index, token in enumerate(tokens):
        if token.__class__ is not str:
            continue
        level += (token in OPENERS) - (token in CLOSERS)
        if index and level == 0 and (token == "\\forall" or (token[0] == '"' and _leads_clause(token))):
            # a further equation after the clause is a further answer
            rest = split_top(tokens[index:], ('"and',))
            more = [part for part in rest[1:] if "=" in part]
            return _trimmed(sum(((*('"and',), *part) for part in more), tokens[:index]))
    return tokens


def _leads_clause(token: str) -> bool:
    words = token[1:].lower().replace("(", " ").split()
    return bool(words) and words[0].strip(",.") in CLAUSES


def _is_words(tokens: tuple) -> bool:
    return any(is_word(token) for token in tokens) and all(
        is_word(token) or (token.__class__ is str and (token in "-'.!?:/&" or (len(token) == 1 and token.isalpha())))
        for token in tokens
    )


def _words_leaf(tokens: tuple) -> Value:
    parts = split_top(tokens, ('"and', '"or'))
    if len(parts) > 1 and all(parts):
        return Group("list", tuple(_words_leaf(part) for part in parts), joined="and")
    text = " ".join(token.strip('"') for token in tokens).lower()
    for comma in (" and ", ",", " or "):
        if comma in text and len(tokens) == 1 and len(text) < 200:
            pieces = [piece.strip() for piece in re.split(r",\s*(?:and|or)\s+|,|\s+and\s+|\s+or\s+", text)]
            if all(pieces) and len(pieces) > 1:
                return Group("list", tuple(Leaf(('"' + piece,), words=_plain(piece)) for piece in pieces), joined="and")
    return Leaf(tokens, words=_plain(text))


def _plain(text: str) -> str:
    text = re.sub(r"[^\w\s'%]", " ", text.lower())
    text = re.sub(r"^(?:(?:on|in|at)\s+)?(?:(?:the|an?)\s+)?", "", " ".join(text.split()))
    return "empty set" if text in EMPTY else text


def _several(tokens: tuple, depth: int) -> Value | None:
    """A list: parts between semicolons, and/or, commas; a family where some of them say what letters stand for."""
    family = beside(tokens) if "\\in" in tokens else None
    if family is not None:
        return family
    joins = [token for token in tokens if token in ('"and', '"or', ";", ",", "\\land", '"pm')]
    if not joins:
        return None
    outer = [part for part in split_top(tokens, (";", '"and', '"or', "\\land")) if part]
    inner = [[part for part in split_top(part, (",",)) if part] for part in outer]
    count = sum(map(len, inner))
    if count < 2:
        return None
    if count > _MAX_ITEMS:
        raise Unreadable("too many items")
    joined = "or" if '"or' in joins else "and" if ('"and' in joins or "\\land" in joins) else ","
    labels = [tuple(_label_of(part) for part in parts) for parts in inner]
    if len(inner) > 1 and len(labels[0]) > 1 and None not in labels[0] and len(set(labels)) == 1:
        # p = 5, q = 2; p = 7, q = 2: pairs
        pairs = tuple(
            Group("tuple", tuple(read(part[part.index("=") + 1 :], depth + 1) for part in parts), "(", ")")
            for parts in inner
        )
        return Group("list", pairs, joined=joined)
    return Group("list", tuple(read(part, depth + 1) for parts in inner for part in parts), joined=joined)


def _label_of(tokens: tuple) -> str | None:
    if "=" not in tokens:
        return None
    label = tokens[: tokens.index("=")]
    return spelled(label) if is_label(label) else None


def _relation(tokens: tuple) -> Relation | None:
    level, parts, ops, last = 0, [], [], 0
    for index, token in enumerate(tokens):
        if token.__class__ is not str:
            continue
        level += (token in OPENERS) - (token in CLOSERS)
        if level == 0 and token in RELATIONS:
            parts.append(tokens[last:index])
            ops.append(token)
            last = index + 1
    if not ops:
        colon = split_top(tokens, (":",))
        if len(colon) == 2 and colon[0] and colon[1] and all(is_word(token) for token in colon[0]):
            return Relation((colon[0], colon[1]), ("=",))
        return None
    parts.append(tokens[last:])
    return Relation(tuple(_trimmed(part) for part in parts), tuple(ops))


def _union(tokens: tuple, depth: int) -> Union | None:
    parts = split_top(tokens, ("\\cup",))
    first = tokens[0]
    sets = len(parts) > 1 or "\\setminus" in tokens or (first in ("\\{", "\\R") and "-" in tokens)
    if not sets:
        return None
    split, without, together = [], [], []
    for part in parts:
        pieces = split_top(part, ("\\setminus",))
        if len(pieces) == 1 and part and part[0] in ("\\{", "\\R", "("):
            minus = split_top(part, ("-",))
            pieces = minus if all(minus) and len(minus) > 1 and minus[1][0] == "\\{" else pieces
        if not all(pieces):
            return None
        split.append(pieces)
    if len(split) == 1 and len(split[0]) == 1:
        return None
    for pieces in split:
        together.append(read(pieces[0], depth + 1))
        without.extend(read(piece, depth + 1) for piece in pieces[1:])
    return Union(tuple(together), tuple(without))


def _bracketed(tokens: tuple, depth: int) -> Value | None:
    opener, closer, content = tokens[0], tokens[-1], tokens[1:-1]
    if not content:
        return Leaf(tokens, words="empty set") if opener == "\\{" else None
    if opener == "\\{":
        rule = split_rule(content)
        if rule is not None:
            return ruled(*rule) or _all_of(read(rule[1], depth + 1))
        parts = [part for part in split_top(content, (",", ";")) if part]
        if len(parts) > _MAX_ITEMS:
            raise Unreadable("too many items")
        return Group("set", tuple(read(part, depth + 1) for part in parts), opener, closer)
    if opener in ("(", "[", "\\langle"):
        parts = split_top(content, (",", ";"))
        if len(parts) > 1 and all(parts):
            if len(parts) > _MAX_ITEMS:
                raise Unreadable("too many items")
            opener, closer = ("(", ")") if opener == "\\langle" else (opener, closer)
            return Group("tuple", tuple(read(part, depth + 1) for part in parts), opener, closer)
        if len(parts) == 1 and (opener, closer) in (("(", ")"), ("[", "]")):
            return read(content, depth + 1)
    return None


def _all_of(conditions: Value) -> Value:
    """Conditions side by side must all be met."""
    if isinstance(conditions, Group) and conditions.kind == "list" and conditions.joined == ",":
        return Group("list", conditions.items, joined="and")
    return conditions


def _grid(table: Table, depth: int) -> Value:
    if table.kind == "cases":
        return Group("list", tuple(read(sum(row, ()), depth + 1) for row in table.rows), joined="and")
    return Grid(tuple(tuple(read(cell, depth + 1) for cell in row) for row in table.rows))


def _ratio(tokens: tuple) -> Group | None:
    parts = split_top(tokens, (":",))
    if len(parts) < 2 or not all(parts):
        return None
    items = tuple(_leaf(part) for part in parts)
    return Group("ratio", items) if all(item.node is not None for item in items) else None


def _leaf(tokens: tuple) -> Leaf:
    body, unit, scale = measured(tokens)
    try:
        node = angle(body) if unit != "deg" and "'" in body else None
        if node is not None:
            return Leaf(tokens, node, "deg")
        node = parse(body)
        return Leaf(tokens, node if scale == 1 else ("*", node, ("n", scale)), unit)
    except Foreign:
        return Leaf(tokens, foreign=True)
    except (Unreadable, RecursionError):
        return Leaf(tokens)
