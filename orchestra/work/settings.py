"""Settings of an export: the keys of the stage, and of the command that does the same."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from evals.settings import FidelityLimits
from models.settings import MergeBase
from settings import FREE, Node, Text

EXPORT = "model"
"""A stage's export, in its folder."""


class ExportSettings(Node):
    """A policy as files that stand alone, and where they are published (orchestra/work/exporting.py)."""

    what: Literal["merged", "adapter"] = "merged"
    """A model that stands alone (the adapter is beside it), or the adapter alone."""
    base: MergeBase = "dequantized"
    """What the adapter is merged into: the 4-bit base's own values, on which it was trained, or the original ones."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Of the merged model."""
    hub: Annotated[Text | None, Field(pattern=r"^[\w.-]+(/[\w.-]+)?(@[\w./-]+)?$")] = None
    """Hub repository `name/model[@branch]` that it is published to. None: the stage's folder only."""
    private: Annotated[bool, FREE] = True
    """Whether a repository that is made is private."""
    tag: Annotated[Text | None, FREE] = None
    """Put on the commit."""
    check: FidelityLimits = FidelityLimits()
    """What must hold before it counts, and before anything is published."""
