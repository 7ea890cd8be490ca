"""The code that decides what a stage computes: everything that its kind's file imports, and what that imports.

Found by walking the syntax trees, imports within functions included, those for type checkers left out. Not followed is
what only looks on (`ONLOOKERS`): it reads recipes, plans, runs and reports stages, and computes nothing of theirs; what
a recipe says is in the fingerprint itself. Comments, docstrings and layout do not count.
"""

from __future__ import annotations

import ast
import hashlib
import sys
import sysconfig
from collections.abc import Sequence
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path

from orchestra import PACKAGES

ONLOOKERS = ("orchestra.config", "orchestra.plan", "orchestra.report", "orchestra.run", "orchestra.text")
DOMAIN = "rewards.domain"
STDLIB = Path(sysconfig.get_path("stdlib")).resolve()
LIBRARIES = {"site-packages", "dist-packages"}


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


def imported_by(file: Path) -> dict[str, str]:
    """Module name -> sha256 of its code, for all that a user's file gets to: what lies beside it, and whatever else of
    the user's Python finds. Libraries do not count, nor what is imported by a name that is computed.
    """
    folders = [Path(folder) for folder in (*sys.path, file.parent)]
    found: dict[str, str] = {}
    seen: set[str] = set()
    waiting = list(_imports(file, ""))
    while waiting:
        name = waiting.pop()
        path = None if name in seen else _source_in(name, folders)
        seen.add(name)
        if "." in name:
            waiting.append(name.rpartition(".")[0])
        if path is not None:
            found[name] = _digest(path)
            waiting += _imports(path, f"{name}.__init__" if path.name == "__init__.py" else name)
    return dict(sorted(found.items()))


def _source_in(module: str, folders: Sequence[Path]) -> Path | None:
    """The file of a module, the first that these folders have; None for a library's, and where there is none."""
    *packages, name = module.split(".")
    places = [folder.joinpath(*packages) for folder in folders]
    files = (file for place in places for file in (place / name / "__init__.py", place / f"{name}.py"))
    path = next((file for file in files if file.is_file()), None)
    library = path is None or path.resolve().is_relative_to(STDLIB) or not LIBRARIES.isdisjoint(path.parts)
    return None if library else path


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
