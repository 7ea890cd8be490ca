"""Expressions as nodes (see rewards.math.parser): walking them, building them shallow, putting one into another."""

from __future__ import annotations


def parts(node: tuple) -> list[tuple]:
    """The nodes directly inside a node."""
    inside = []
    for part in node[1:]:
        if part.__class__ is tuple and part:
            if part[0].__class__ is str:
                inside.append(part)
            else:
                inside.extend(part)
    return inside


def contains(node: tuple, kind: str) -> bool:
    """Whether a kind of node occurs in an expression."""
    return node[0] == kind or any(contains(part, kind) for part in parts(node))


def letters_of(node: tuple) -> set[str]:
    """Names of the variables and called functions in an expression."""
    found = {node[1]} if node[0] in ("v", "call") else set()
    for part in parts(node):
        found |= letters_of(part)
    return found


def balanced(sign: str, nodes: list) -> tuple:
    """A long sum or product as a shallow tree, so that walking it needs little stack."""
    while len(nodes) > 1:
        nodes = [
            (sign, nodes[at], nodes[at + 1]) if at + 1 < len(nodes) else nodes[at] for at in range(0, len(nodes), 2)
        ]
    return nodes[0]


def replaced(node: tuple, part: tuple, value: tuple) -> tuple:
    """The expression with every occurrence of a part replaced."""
    if node == part:
        return value
    return tuple(
        replaced(item, part, value)
        if item.__class__ is tuple and item and item[0].__class__ is str
        else tuple(replaced(inner, part, value) for inner in item)
        if item.__class__ is tuple
        else item
        for item in node
    )


def substitute(node: tuple, name: str, value: tuple) -> tuple:
    """The expression with a variable replaced."""
    return replaced(node, ("v", name), value)
