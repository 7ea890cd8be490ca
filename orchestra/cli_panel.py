"""`orchestra panel`: the experts of a panel, shown and changed by hand."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestra.config.faults import UserError
from orchestra.run.disk import disk_errors
from orchestra.text import NBSP, percent, points, readable, removal_line, size
from settings import near

if TYPE_CHECKING:
    from models.experts import Expert, Panel, Record, RemovalRecord
    from models.panel_changes import Change, Reroute

panel = typer.Typer(help="Show a panel of experts, or change one by hand; every change can be undone.",
                    no_args_is_help=True)  # fmt: skip

Folder = Annotated[Path, typer.Argument(help="A panel's folder: the one with panel.json.", show_default=False)]
Known = Annotated[str, typer.Argument(help="An expert's name.", show_default=False)]
New = Annotated[str, typer.Argument(help="A name that no expert has yet.", show_default=False)]


@panel.command()
def show(folder: Folder) -> None:
    """Show the experts: domain, rank, where they come from, what they did when they were last measured, and what the
    panel is predicted to gain or lose without them, in points."""
    from models.experts import read_panel

    with disk_errors(folder):
        for line in _table(folder, read_panel(folder)):
            typer.echo(line)


@panel.command()
def copy(
    run: Annotated[str, typer.Argument(help="A run's folder, or its name below runs/.", show_default=False)],
    folder: Annotated[Path, typer.Argument(help="A folder that is not there yet.", show_default=False)],
    stage: Annotated[str | None, typer.Option("--stage", help="Whose panel; default: the last one.")] = None,
) -> None:
    """Copy a run's panel, to change it by hand: a run's own stays as its stages left it."""
    from models.panel_changes import copy_panel
    from orchestra.run.folder import find_run

    _must_be_outside_runs(folder)
    with disk_errors(folder):
        made = copy_panel(_panel_of(find_run(run), stage), folder)
    typer.echo(f"{folder}: {', '.join(made.names) or 'no experts'}")


@panel.command()
def add(
    folder: Folder,
    name: New,
    source: Annotated[Path, typer.Option("--from", help="A PEFT adapter's folder.", show_default=False)],
    domains: Annotated[
        list[str] | None, typer.Option("--domain", help="Of the problems that it is for; repeatable; default: all.")
    ] = None,
) -> None:
    """Add the adapter of a folder as an expert; one of another base is refused."""
    from models import panel_changes

    _change(folder, lambda panel, _: panel_changes.add(panel, name, source, tuple(domains or ()), folder), new=name)


@panel.command()
def clone(folder: Folder, old: Known, new: New) -> None:
    """Copy an expert under a name of its own."""
    from models import panel_changes

    _change(folder, lambda panel, _: panel_changes.clone(panel, old, new), new=new)


@panel.command()
def remove(folder: Folder, name: Known) -> None:
    """Take an expert out, and out of the router, and say what that is predicted to cost where it is known."""
    from models import panel_changes

    def removed(panel: Panel, reroute: Reroute) -> Change:
        change = panel_changes.remove(panel, name, reroute)
        if (cost := panel.expert(name).cost) is not None:
            typer.echo(removal_line(name, cost))
        return change

    _change(folder, removed)


@panel.command()
def rename(folder: Folder, old: Known, new: New) -> None:
    """Give an expert another name, in the router too."""
    from models import panel_changes

    _change(folder, lambda panel, reroute: panel_changes.rename(panel, old, new, reroute))


@panel.command()
def undo(folder: Folder) -> None:
    """Take the last change back, byte for byte; again, and the one before it."""
    from models import panel_changes
    from models.experts import parsed

    with disk_errors(folder):
        taken_back = parsed(folder).change
    _change(folder, lambda panel, _: panel_changes.undo(panel), told=f"undone: {taken_back}")


def _change(folder: Path, change: Callable[[Panel, Reroute], Change], told: str = "", new: str = "") -> None:
    """Apply a change to the panel in a folder and say so. `new`: an expert that a router does not know."""
    from models.panel_changes import apply, rerouting

    _must_be_outside_runs(folder)
    with disk_errors(folder), tempfile.TemporaryDirectory() as scratch:
        after = apply(folder, lambda before: change(before, rerouting(folder, before, Path(scratch))))
    typer.echo(f"{folder}: {told or f'{after.change}; `orchestra panel undo {folder}` takes it back'}")
    if new and after.router is not None:
        typer.echo(f"  the router does not know {new!r}, which answers nothing until a `route` stage decides anew")


def _panel_of(run: Path, stage: str | None) -> Path:
    """The panel of a run's finished stage, by name or the last one that has any."""
    from models.experts import PANEL
    from orchestra.run.ledger import Ledger
    from orchestra.work.context import PANEL_FOLDER

    entries = sorted(Ledger(run).entries.values(), key=lambda entry: entry.folder)
    folders = {entry.result.name: run / entry.folder / PANEL_FOLDER for entry in entries}
    panels = {name: place for name, place in folders.items() if (place / PANEL).is_file()}
    if not panels:
        raise UserError(f"{run}: no finished stage of it has a panel; one with `expert:` leaves one")
    if stage is not None and stage not in panels:
        raise UserError(f"--stage {stage}: has no panel (these have: {', '.join(panels)}){near(stage, panels)}")
    return panels[stage or list(panels)[-1]]


def _must_be_outside_runs(folder: Path) -> None:
    for place in (folder.resolve(), *folder.resolve().parents):
        if any((place / file).is_file() for file in ("run.json", "ledger.json")):
            raise UserError(
                f"{folder} lies in the run {place}, which would refuse to go on if it were changed; "
                f"`orchestra panel copy {place} FOLDER` first, with a FOLDER outside, and change that"
            )


def _table(folder: Path, panel: Panel) -> list[str]:
    """A row for each expert, then the router and what can be undone."""
    from models.experts import BASE, expert_folder, router_folder

    rows = [("expert", "domain", "rank", "parent", "trained in", "accuracy", "without it", "size")]
    rows += [_row(expert, expert_folder(folder, expert.name)) for expert in panel.experts]
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    right = (2, 5, 6, 7)
    lines = [
        "  ".join(
            cell.rjust(width) if at in right else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    router = router_folder(folder, panel)
    routed = "none" if router is None else f"{router.relative_to(folder)}, {size(_bytes(router))}"
    undone = f"`orchestra panel undo {folder}` takes back: {panel.change}" if panel.before else "nothing to undo"
    return [f"{BASE}: {readable(panel.base)}", *lines, f"router: {routed}", readable(undone)]


def _row(expert: Expert, place: Path) -> tuple[str, ...]:
    lineage = expert.lineage
    cells = (expert.name, ", ".join(expert.domains) or "all", str(expert.rank), lineage.parent, lineage.stage or "–",
             _measured(expert.record), _predicted(expert.cost), size(_bytes(place)))  # fmt: skip
    return tuple(readable(cell) for cell in cells)


def _measured(record: Record | None) -> str:
    if record is None:
        return "–"
    return f"{percent(record.accuracy)} [{100 * record.low:.1f}, {100 * record.high:.1f}]".replace(NBSP, " ")


def _predicted(cost: RemovalRecord | None) -> str:
    if cost is None:
        return "–"
    return f"{points(cost.difference)} [{points(cost.low)}, {points(cost.high)}]"


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
