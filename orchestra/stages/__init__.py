"""The kinds of stages, a file each: whatever class in one of them has a `kind` of its own may stand in a recipe."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import Literal, get_args, get_origin

from orchestra.config.stage import Stage


@cache
def all_kinds() -> Mapping[str, type[Stage]]:
    """Every kind by name, that of stage 00 included. Raises TypeError where two files define the same one."""
    found: dict[str, type[Stage]] = {}
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        for kind in vars(module).values():
            if not (isinstance(kind, type) and issubclass(kind, Stage) and kind.__module__ == module.__name__):
                continue
            annotation = kind.model_fields["kind"].annotation
            if get_origin(annotation) is Literal:
                (name,) = get_args(annotation)
                if name in found:
                    raise TypeError(f"two kinds of stages are called {name!r}: {found[name]} and {kind}")
                found[name] = kind
    return found


def kinds() -> Mapping[str, type[Stage]]:
    """The kinds that may stand in a recipe, by name."""
    return {name: kind for name, kind in all_kinds().items() if kind.written}
