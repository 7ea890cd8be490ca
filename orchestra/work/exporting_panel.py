"""A panel as a folder that stands alone: PEFT loads each of its experts, and vLLM serves all of them at once.

README.md             the card
panel.json            see models/experts.py
experts/<name>/       a PEFT folder each
routers/<hash>/       the router, if the panel has one
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace as changed
from pathlib import Path
from typing import TYPE_CHECKING

from models.engines.protocol import ADAPTER_CONFIG, ADAPTER_TENSORS
from models.experts import (
    PANEL,
    Panel,
    PanelError,
    expert_folder,
    expert_of,
    panel_json,
    read_panel,
    router_folder,
    write_panel,
)
from models.paths import hub_model
from orchestra.run.ledger import write_json
from orchestra.work.exported import CARD

if TYPE_CHECKING:
    from orchestra.config.recipe import Recipe


def export_panel(
    panel: Panel, source: Path, folder: Path, run_dir: Path, recipe: Recipe, *, no_go: str = "", replace: bool = False
) -> Panel:
    """Write a panel from its folder into another, which then holds it, a card, and nothing else.

    The experts' weights are the same bytes; what their configs say of this machine is left out. The same panel that is
    there already, whole, is left as it is.

    Args:
        recipe: of the run, with the base as it was trained; no_go: what a gate said against it, for the card.
        replace: also another panel that is there.

    Raises:
        PanelError: what was written is not the panel, or the folder holds something else.
    """
    partial, made = (folder.with_name(f".{folder.name}.{what}") for what in ("partial", "made"))
    try:
        for place in (partial, made):
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
        _write(panel, source, partial, made)
        exported = read_panel(partial)
        for before, after in zip(panel.experts, exported.experts, strict=True):
            if (before.name, before.files[ADAPTER_TENSORS]) != (after.name, after.files[ADAPTER_TENSORS]):
                raise PanelError(f"{folder}: expert {after.name!r} was not written as it is; export again")
        if _there(folder, exported, replace=replace):
            return exported
        (partial / CARD).write_text(_card(exported, run_dir, recipe, no_go), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        for place in (partial, made):
            shutil.rmtree(place, ignore_errors=True)
    return exported


def _there(folder: Path, panel: Panel, *, replace: bool) -> bool:
    """Whether the folder holds this panel already, whole.

    Raises:
        PanelError: it holds another one that is not to be replaced, or something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    # a run's own panel has no card: it is never replaced
    if not (folder / PANEL).is_file() or not (folder / CARD).is_file():
        raise PanelError(f"{folder} holds something else than an exported panel; choose a folder that is new or empty")
    if (folder / PANEL).read_bytes() == panel_json(panel):
        read_panel(folder)
        return True
    if not replace:
        raise PanelError(f"{folder} holds another panel; choose another folder (--replace puts this one in its place)")
    return False


def _write(panel: Panel, source: Path, partial: Path, made: Path) -> None:
    """Copies, since a panel's folder shares its files with the run's others."""
    hub = hub_model(panel.base)
    for expert in panel.experts:
        own, copy = expert_folder(source, expert.name), made / expert.name
        copy.mkdir()
        shutil.copyfile(own / ADAPTER_TENSORS, copy / ADAPTER_TENSORS)
        config = json.loads((own / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        # the base by its name on the Hub; a folder of this machine, or a shipped model, is nobody else's
        write_json(copy / ADAPTER_CONFIG, config | {"base_model_name_or_path": hub.repo if hub is not None else ""})
    experts = tuple(
        changed(expert_of(made / one.name, one.name, one.domains, one.lineage, one.record), cost=one.cost)
        for one in panel.experts
    )
    router = router_folder(source, panel)
    if router is not None:
        router = Path(shutil.copytree(router, made / "router-of-all"))
    exported = changed(panel, experts=experts, change="", before=None)
    write_panel(partial, exported, {name: made / name for name in panel.names}, router)


def _card(panel: Panel, run_dir: Path, recipe: Recipe, no_go: str) -> str:
    from orchestra.report.card import Licences
    from orchestra.report.data import read_run
    from orchestra.report.panel_card import panel_card
    from orchestra.run.folder import read_json
    from orchestra.work.publishing import LICENCES

    licences = Licences(read_json(run_dir / LICENCES))
    text = panel_card(read_run(run_dir), recipe, panel, no_go, licences)
    write_json(run_dir / LICENCES, licences.known)
    return text
