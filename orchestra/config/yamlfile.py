"""Reading YAML 1.2 safely: bounded in size, no object tags, every mistake one message with file and line.

YAML 1.2 because 1.1 (PyYAML) reads `1e-4` as text and `no` as a boolean.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from orchestra.config.faults import Fault, RecipeError, brief

MAX_BYTES = 256 * 1024
"""A recipe is a page of text; more is the wrong file."""
MAX_NODES = 20_000
"""Keys and values after aliases are expanded; an alias bomb has billions."""
MAX_DEPTH = 30


def shown(path: Path) -> str:
    """The path as the user would type it: relative to the working directory where it lies below it."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def read_mapping(path: Path) -> dict[str, Any]:
    """The file's one mapping. Raises RecipeError."""
    where = shown(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise _error(f"is {path.stat().st_size:,} bytes; a recipe has at most {MAX_BYTES:,}", where)
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise _error(f"byte {error.start} is not UTF-8; save the file as UTF-8", where) from None
    except OSError as error:
        raise _error(f"cannot be read: {error.strerror}", where) from None
    value = parse(text, where)
    if value is None:
        raise _error("is empty; a recipe starts with `name:`", where)
    if not isinstance(value, dict):
        raise _error(f"holds a {_noun(value)}; a mapping (`key: value` lines) is needed", where)
    return value


def parse(text: str, where: str) -> Any:
    """Plain dicts, lists and scalars from YAML text, the caller's own. Raises RecipeError naming
    `where` and the line."""
    return deepcopy(_parsed(text, where))


@lru_cache(maxsize=64)
def _parsed(text: str, where: str) -> Any:
    """A scale is read for every recipe, a recipe for every scale and arm: most of what `orchestra check` does else."""
    yaml = YAML(typ="safe", pure=True)
    yaml.max_depth = MAX_DEPTH
    try:
        value = yaml.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f"{where}:{mark.line + 1}" if mark is not None and not where.startswith("--") else where
        raise _error(_remedy(error), at) from None
    except (YAMLError, ValueError, TypeError) as error:
        raise _error(f"is not YAML: {' '.join(str(error).split())}", where) from None
    except RecursionError:
        raise _error(f"is nested more than {MAX_DEPTH} deep", where) from None
    _bounded(value, where)
    return value


def line_of(path: Path, keys: tuple[str | int, ...]) -> int | None:
    """Line of the deepest of these keys that the file has; None where it cannot be found again."""
    try:
        node = _composed(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, YAMLError):
        return None
    line = None
    for key in keys:
        if isinstance(node, MappingNode):
            pair = next((pair for pair in node.value if pair[0].value == str(key)), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line + 1
        else:
            break
    return line


@lru_cache(maxsize=64)
def _composed(text: str) -> Node | None:
    """Asked for every key that an arm changes, of the same few files, which is half of `orchestra check` else."""
    return YAML(typ="safe", pure=True).compose(text)


def _error(message: str, where: str) -> RecipeError:
    return RecipeError([Fault((), message, where=where)])


def _remedy(error: MarkedYAMLError) -> str:
    """One line from the library's several, with a hint for the usual mistakes."""
    problem = " ".join(str(error.problem or error.context or "not YAML").split())
    if "duplicate key" in problem:
        return problem.split(" with value")[0] + "; keep one of the two"
    if "maximum depth" in problem:
        return f"nested more than {MAX_DEPTH} deep"
    if "tab" in problem.lower() or "'\\t'" in problem:
        return "a tab character; indent with spaces"
    if "another document" in problem or "single document" in str(error.context):
        return "a second document (`---`); a file holds one recipe"
    if "could not determine a constructor" in problem:
        return "a tag (`!...`); only plain values are allowed"
    return f"not YAML: {problem}"


def _noun(value: object) -> str:
    return {list: "list", str: "text", bool: "truth value", int: "number", float: "number"}.get(type(value), "value")


def _bounded(value: object, where: str) -> None:
    """Refuse what would explode when it is walked: aliases to aliases, recursion, odd keys."""
    sizes: dict[int, int] = {}
    open_ids: set[int] = set()

    def size(node: object, depth: int) -> int:
        if not isinstance(node, dict | list):
            if isinstance(node, datetime.date | bytes | set):
                raise _error(f"{brief(str(node))} is a date or binary; put it in quotes", where)
            return 1
        if id(node) in open_ids:
            raise _error("an alias (`*`) refers to what it is part of", where)
        if depth > MAX_DEPTH:
            raise _error(f"is nested more than {MAX_DEPTH} deep", where)
        if id(node) not in sizes:
            open_ids.add(id(node))
            if isinstance(node, Mapping):
                for key in node:
                    if not isinstance(key, str | int):
                        raise _error(f"{brief(key)} is not a possible key; keys are text", where)
            items = node.values() if isinstance(node, Mapping) else node
            sizes[id(node)] = 1 + sum(size(item, depth + 1) for item in items)
            open_ids.discard(id(node))
        if sizes[id(node)] > MAX_NODES:
            raise _error(f"holds more than {MAX_NODES:,} values; is it a recipe?", where)
        return sizes[id(node)]

    size(value, 0)
