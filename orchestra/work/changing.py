"""What a panel stage does: one change of the panel by hand, in a copy of it; the panel before stays as it was."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from models import panel_changes
from models.experts import Panel, PanelError, must_be_untouched, read_panel, write_panel
from models.panel_changes import Change, rerouting
from orchestra.text import removal_line
from orchestra.work.context import PANEL_FOLDER, StageContext
from orchestra.work.panels import built, on_base
from orchestra.work.settings import REMOVAL

if TYPE_CHECKING:
    from models.settings import PanelChange
    from orchestra.run.ledger import StageResult


def change_panel(context: StageContext, settings: PanelChange) -> StageResult:
    """Change the panel, and hand it on.

    Raises:
        PanelError: see models/panel_changes.py; or nobody has predicted what a removal will cost.
        AdapterError: what is added does not fit the base.
    """
    before, source = context.before
    cost = before.expert(settings.expert).cost if settings.change == "remove" else None
    if settings.change == "remove" and cost is None:
        raise PanelError(f"what it will cost to remove {settings.expert!r}, nobody has predicted; route before it")
    if cost is not None:
        context.progress.say(f"    {removal_line(settings.expert, cost)}")
    if settings.change == "add":
        # its config may name a base that has other layers than it was trained on
        on_base(context, before, {settings.expert: Path(settings.folder)})
    after = context.once(lambda: _changed(context, settings, before, source))
    told = f"undone: {before.change}" if settings.change == "undo" else after.change
    context.progress.say(f"    {told}")
    if after.router is not None and settings.change in ("add", "clone"):
        context.progress.say("    the router does not know the new expert, which answers nothing until a route stage")
    predicted = {} if cost is None else {f"{REMOVAL}{name}": value for name, value in vars(cost).items()}
    return context.result(change=told, **built(context, after), **predicted)


def _changed(context: StageContext, settings: PanelChange, before: Panel, source: Path) -> Panel:
    own = context.folder / PANEL_FOLDER
    shutil.rmtree(own, ignore_errors=True)  # of a run that was killed
    if context.panel is None:
        write_panel(own, before)
    else:
        panel_changes.copy_panel(source, own)
    with tempfile.TemporaryDirectory() as scratch:
        panel_changes.apply(own, lambda panel: _change(panel, settings, own, Path(scratch)))
    after = read_panel(own)
    if settings.change != "undo":
        must_be_untouched(before, after, but=(settings.expert,) if settings.change in ("remove", "rename") else ())
    return after


def _change(panel: Panel, settings: PanelChange, folder: Path, scratch: Path) -> Change:
    expert, reroute = settings.expert, rerouting(folder, panel, scratch)
    match settings.change:
        case "add":
            return panel_changes.add(panel, expert, Path(settings.folder), settings.domains or (), folder)
        case "clone":
            return panel_changes.clone(panel, expert, settings.to)
        case "remove":
            return panel_changes.remove(panel, expert, reroute)
        case "rename":
            return panel_changes.rename(panel, expert, settings.to, reroute)
        case "undo":
            return panel_changes.undo(panel)
