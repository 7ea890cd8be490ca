"""The code that decides what a stage computes: everything that its kind's file imports, and what that imports.

Found by walking the syntax trees, imports within functions included, those for type checkers left out. Not followed is
what only looks on (`ONLOOKERS`): it reads recipes, plans, runs and reports stages, and computes nothing of theirs; what
a recipe says is in the fingerprint itself. Comments, docstrings and layout do not count.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path

from orchestra import PACKAGES

ONLOOKERS = ("orchestra.config", "orchestra.plan", "orchestra.report", "orchestra.run", "orchestra.text")
DOMAIN = "rewards.domain"


def closure(module: str, domain: str) -> dict[str, str]:
    """Module name -> sha256 of its code, for a module and all of the program's that it gets to.

    Args:
        module: of a kind of stage.
        domain: the recipe's, which is looked up by name where `rewards.domain` is asked for one.
    """
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = None if name in found else _source(name)
        if path is None:
            continue
        found[name] = _digest(path)
        waiting += _imports(path, name)
        if name == DOMAIN:
            waiting.append(f"rewards.{domain}.domain")
    return dict(sorted(found.items()))


def _source(module: str) -> Path | None:
    """The file of a module of the program; None for others', for onlookers, and where the name is no module's."""
    if module.split(".")[0] not in (*PACKAGES, "orchestra") or module.startswith(ONLOOKERS):
        return None
    spec = _spec(module)
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


def _spec(module: str) -> ModuleSpec | None:
    """Without importing anything but packages, as `importlib.util.find_spec` would."""
    package, _, _ = module.rpartition(".")
    if not package:
        return find_spec(module)
    if package in sys.modules:
        folders = getattr(sys.modules[package], "__path__", None)
    else:
        parent = _spec(package)
        folders = parent.submodule_search_locations if parent is not None else None
    return PathFinder.find_spec(module, folders) if folders is not None else None


@cache
def _imports(path: Path, module: str) -> frozenset[str]:
    """Names that may be modules: of `from a import b` both `a` and `a.b`."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_bytes())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # the program has no relative imports; a user's kind may
            base = module.rsplit(".", node.level)[0] if node.level else ""
            source = ".".join(part for part in (base, node.module) if part)
            found |= {source, *(f"{source}.{alias.name}" for alias in node.names)}
        waiting += ast.iter_child_nodes(node)
    return frozenset(found)


@cache
def _digest(path: Path) -> str:
    """sha256 of the syntax tree, so that comments, docstrings and layout do not count."""
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [line for line in node.body if not _is_text(line)]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _is_text(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)
