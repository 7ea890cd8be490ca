"""The program: recipes read, planned, run and reported.

The packages it stands on have plain names (`models`, `rl`, ...), and so may files and folders of the user's where he
works or on his PYTHONPATH. They are therefore looked for beside this package alone, wherever Python would look first.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

_HERE = Path(__file__).resolve().parent
_INSTALLED = _HERE / "house"
HOUSE = _INSTALLED if _INSTALLED.is_dir() else _HERE.parent
"""The folder of the packages: in a wheel below this one, so that only one name is put among other distributions'."""
PACKAGES = ("evals", "models", "rewards", "rl", "settings", "sft")
RECIPES = next(folder for folder in (_HERE / "recipes", _HERE.parent / "recipes") if folder.is_dir())
"""The recipes that come with the program."""


class _BesideUs(MetaPathFinder):
    """Finds `PACKAGES` in `HOUSE`."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [str(HOUSE)], target) if path is None and name in PACKAGES else None


sys.meta_path.insert(0, _BesideUs())
