"""A page from a template, and into its folder: what the report of a run and the comparison of arms have in common."""

from __future__ import annotations

import os
from pathlib import Path

from orchestra.text import FILTERS

PAGE = "report.html"


def rendered(template: str, **values: object) -> str:
    """The page as HTML text; whatever is put into it is escaped, but what the filter `svg` marks as drawn here."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("orchestra.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS, svg=Markup)
    return environment.get_template(template).render(**values)


def write_page(folder: Path, page: str) -> Path:
    """Write report.html into a folder so that a reader sees the old page or the new one; returns its path."""
    path, partial = folder / PAGE, folder / f".report-{os.getpid()}.tmp"
    try:
        # a lone surrogate in a completion cannot be written as UTF-8
        partial.write_bytes(page.encode("utf-8", errors="replace"))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path
