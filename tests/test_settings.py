"""A setting has one home: its default stands once, and whoever needs it is given the settings whole."""

import ast
import itertools
from pathlib import Path

import pytest
from pydantic_core import PydanticUndefined

from orchestra.config.recipe import Recipe
from orchestra.stages import all_kinds
from settings import Node, node_in

ROOT = Path(__file__).parent.parent
PACKAGES = ("orchestra", "sft", "rl", "evals", "models", "rewards")
# how the shipped models were made has settings of its own
MODULES = sorted(
    path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if path.parent.name != "embedded"
)


def every_node() -> list[type[Node]]:
    """The recipe's mappings, its stages', and the classes that these are made of."""
    found: dict[type[Node], None] = {}
    waiting: list[type] = [Recipe, *all_kinds().values()]
    while waiting:
        model = waiting.pop()
        if model in found or not issubclass(model, Node) or model is Node:
            continue
        found[model] = None
        waiting += [base for base in model.__mro__ if issubclass(base, Node)]
        waiting += [inner for field in model.model_fields.values() if (inner := node_in(field.annotation))]
    return list(found)


NODES = every_node()
HOMES = {
    (model, name): model.model_fields[name]
    for model in NODES
    for name in vars(model).get("__annotations__", {})
    if name in model.model_fields
}
"""(class, key) -> field, where the class declares it itself."""


def test_the_walk_finds_the_homes():
    keys = {name for _, name in HOMES}
    assert {"beta", "epsilon", "temperature", "warmup_ratio", "rank", "confidence", "keep", "train", "cosine"} <= keys


# two settings that are called alike: the trainer's arithmetic and the engine's; a probe's truncation is another's
TWO = {"dtype", "top_p", "min_p"}


def test_no_two_settings_declare_the_same():
    """Equal key, equal kind, equal default: one of the two is a copy. Required keys have nothing to disagree about."""
    for ((a, name), one), ((b, other_name), other) in itertools.combinations(HOMES.items(), 2):
        if name != other_name or name in TWO or one.is_required() or other.is_required() or one.default is None:
            continue
        same = (str(one.annotation), str(one.metadata), one.default)
        assert same != (str(other.annotation), str(other.metadata), other.default), (
            f"{a.__name__} and {b.__name__}: {name}"
        )


DEFAULTED = {
    name for (_, name), field in HOMES.items() if field.default not in (None, PydanticUndefined) and name != "kind"
}
# words so general that a key of that name has nothing to do with a parameter of it
GENERAL = {"name", "what", "base", "format", "file", "length", "domain", "parent", "seed", "metric"}


def defaults(tree: ast.Module):
    """(line, name) of every parameter and every dataclass field that has a default other than None."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            args = node.args
            pairs = [*zip(reversed([*args.posonlyargs, *args.args]), reversed(args.defaults), strict=False),
                     *zip(args.kwonlyargs, args.kw_defaults, strict=True)]  # fmt: skip
            yield from ((arg.lineno, arg.arg) for arg, value in pairs if not _is_none(value))
        elif isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(one) for one in node.decorator_list):
            yield from (
                (line.lineno, line.target.id)
                for line in node.body
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and not _is_none(line.value)
            )


def _is_none(value: ast.expr | None) -> bool:
    return value is None or (isinstance(value, ast.Constant) and value.value is None)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_default_stands_beside_its_setting(path):
    copies = [
        f"line {line}: {name}" for line, name in defaults(ast.parse(path.read_text(encoding="utf-8")))
        if name in DEFAULTED - GENERAL
    ]  # fmt: skip
    assert not copies, f"{copies} have a home in a settings.py; take the settings whole"


def test_a_copied_default_would_be_found():
    text = "@dataclass\nclass A:\n    epsilon: float = 0.2\ndef f(a, *, beta=0.1): ...\n"
    assert {name for _, name in defaults(ast.parse(text))} == {"epsilon", "beta"} <= DEFAULTED
