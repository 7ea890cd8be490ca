"""A panel changed by hand: pure functions from a panel to a `Change`, and `apply`, the one that touches its folder.

Every change keeps the panel before it, so that as many `undo` as there were changes end with the first one: the same
panel.json and the same files, byte for byte. What a change is not about keeps its files as they are. A router stays as
it is where an expert comes, which it then does not know and sends nothing to; where one goes, or gets another name, the
router must lose or rename its row, which `Reroute` does. What removals were predicted to cost holds for the experts
that there were: it is forgotten where one comes or goes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from models.engines.protocol import ADAPTER_CONFIG, ADAPTER_TENSORS
from models.expert_files import adapter_config, tensor_shapes
from models.experts import (
    Expert,
    Lineage,
    Panel,
    PanelError,
    expert_folder,
    expert_of,
    name_fault,
    parsed,
    read_panel,
    router_files,
    router_folder,
    write_panel,
)
from models.paths import Place, model_place
from settings.files import sync_folder
from settings.hub import is_commit

Reroute = Callable[[str, str | None], Path]
"""Makes the panel's router anew, its expert renamed or, with None, without it; returns the folder of its files."""


@dataclass(frozen=True)
class Change:
    """A panel after a change; folders of experts, and of the router, whose files are not in the panel's folder yet."""

    panel: Panel
    sources: Mapping[str, Path] = field(default_factory=dict)
    router: Path | None = None


def add(panel: Panel, name: str, source: Path, domains: tuple[str, ...], folder: Path) -> Change:
    """With the adapter of a folder as an expert more, the last one.

    Args:
        domains: of the problems that it is for; none where it is for all.
        folder: the panel's, whose experts show what fits its base.

    Raises:
        PanelError: the name is taken or none for an expert; the adapter is cut off, no plain LoRA, or of another base.
    """
    _must_be_free(panel, name)
    expert = outside_expert(name, source, domains, panel.base)
    shapes = tensor_shapes(source)
    for other in panel.names:
        if fault := _misfit(shapes, tensor_shapes(expert_folder(folder, other))):
            raise PanelError(f"{source / ADAPTER_TENSORS}: {fault} of expert {other!r}: it is of another base")
    return Change(_after(panel, panel.with_expert(expert).without_costs(), f"added {name!r}"), {name: source})


def outside_expert(name: str, source: Path, domains: tuple[str, ...], base: str) -> Expert:
    """What a panel on a base would say of the adapter in a folder.

    Raises:
        PanelError: the adapter is cut off, no plain LoRA, or says that it is of another base.
    """
    expert = expert_of(source, name, domains, Lineage(stage=""))
    _must_be_on_base(source, base)
    return expert


def clone(panel: Panel, old: str, new: str) -> Change:
    """With a copy of an expert under a name of its own, the last one.

    Raises:
        PanelError: there is none of the old name; the new one is taken, or none for an expert.
    """
    expert = panel.expert(old)
    _must_be_free(panel, new)
    copied = replace(expert, name=new, lineage=replace(expert.lineage, parent=old))
    return Change(_after(panel, panel.with_expert(copied).without_costs(), f"cloned {old!r} as {new!r}"))


def remove(panel: Panel, name: str, reroute: Reroute | None = None) -> Change:
    """Without an expert.

    Raises:
        PanelError: there is none of that name, or no other; or there is a router and nothing that takes its row out.
    """
    gone = panel.expert(name)
    if panel.names == (name,):
        raise PanelError(f"{name!r} is the last expert of the panel, which without it is none; take the folder away")
    less = replace(panel, experts=tuple(one for one in panel.experts if one is not gone))
    return _rerouted(panel, less.without_costs(), f"removed {name!r}", (name, None), reroute)


def rename(panel: Panel, old: str, new: str, reroute: Reroute | None = None) -> Change:
    """With another name for an expert, also where it is another one's parent.

    Raises:
        PanelError: there is none of the old name; the new one is taken, or none for an expert; or there is a router and
            nothing that renames its row.
    """
    known = panel.expert(old)
    _must_be_free(panel, new)
    experts = tuple(
        replace(
            one,
            name=new if one is known else one.name,
            lineage=replace(one.lineage, parent=new if one.lineage.parent == old else one.lineage.parent),
        )
        for one in panel.experts
    )
    return _rerouted(panel, replace(panel, experts=experts), f"renamed {old!r} to {new!r}", (old, new), reroute)


def undo(panel: Panel) -> Change:
    """The panel before the last change. Raises PanelError where there was none, or it had no expert yet."""
    if panel.before is None or not panel.before.experts:
        raise PanelError("there is nothing to undo: nothing was added, cloned, removed or renamed in this panel")
    return Change(panel.before)


def rerouting(folder: Path, panel: Panel, scratch: Path) -> Reroute:
    """How the router of the panel in a folder loses or renames an expert; one that it does not know leaves it as it is.

    Args:
        scratch: an empty folder, for the router's new files.
    """

    def reroute(old: str, new: str | None) -> Path:
        from models.router import Router  # needs torch, as nothing else here does

        place = router_folder(folder, panel)
        router = Router.read(place)
        if old not in router.names:
            return place
        (router.without(old) if new is None else router.renamed(old, new)).write(scratch)
        return scratch

    return reroute


def apply(folder: Path, change: Callable[[Panel], Change]) -> Panel:
    """Change the panel in a folder, which holds no link to a file elsewhere afterwards; after any error it is what it
    was.

    Raises:
        PanelError: the panel is not what its panel.json says, another process changes it now, or the change's own.
        OSError: the disk.
    """
    parsed(folder)  # what is no panel is not locked
    with _alone(folder):
        done = change(read_panel(folder))
        return write_panel(folder, done.panel, done.sources, done.router, copy=True)


def copy_panel(source: Path, folder: Path) -> Panel:
    """A panel's folder once more, whole or not at all, with all that can be undone and no link between the two.

    Args:
        folder: that is not there yet, or empty.

    Raises:
        PanelError: the panel is not what its panel.json says, or there is something already.
        OSError: the disk.
    """
    panel, folder = read_panel(source), folder.absolute()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise PanelError(f"{folder} is there already; choose a folder that is not there yet")
    partial = folder.with_name(f".{folder.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    try:
        shutil.copytree(source, partial)
        for path in (*partial.rglob("*"), partial):
            sync_folder(path)
        partial.rename(folder)
    finally:
        if partial.exists():
            shutil.rmtree(partial)
    sync_folder(folder.parent)
    return panel


def _after(before: Panel, after: Panel, change: str) -> Panel:
    return replace(after, change=change, before=before)


def _rerouted(before: Panel, after: Panel, change: str, row: tuple[str, str | None], reroute: Reroute | None) -> Change:
    if before.router is None:
        return Change(_after(before, after, change))
    if reroute is None:
        raise PanelError(f"the panel has a router, which routes to {row[0]!r}, and nothing was given to change it")
    made = reroute(*row)
    return Change(_after(before, replace(after, router=router_files(made)), change), router=made)


def _must_be_free(panel: Panel, name: str) -> None:
    if fault := name_fault(name):
        raise PanelError(fault)
    if name in panel:
        listed = ", ".join(panel.names)
        raise PanelError(f"there is an expert {name!r} already (experts: {listed}); choose another name")


def _must_be_on_base(source: Path, base: str) -> None:
    """PEFT says in an adapter's config which base it is of: a folder, or a name on the Hub with a commit beside it."""
    config, path = adapter_config(source), source / ADAPTER_CONFIG
    named = config.get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise PanelError(f"{path}: base_model_name_or_path is missing; name the base there, here {base!r}")
    own, wanted = _resolved(named), _resolved(base)
    revision = str(config.get("revision") or own.revision)
    other_commit = is_commit(revision) and is_commit(wanted.revision) and revision != wanted.revision
    if own.path != wanted.path or other_commit:
        at = f" at {revision}" if other_commit else ""
        raise PanelError(
            f"{path}: base_model_name_or_path is {named!r}{at}, and the panel is on {base!r}: experts work on their "
            "own base only; if the two are the same model, write the panel's there"
        )


def _resolved(name: str) -> Place:
    place = model_place(name)
    path = Path(place.path).expanduser()
    return replace(place, path=str(path.resolve())) if path.is_dir() else place


def _misfit(own: Mapping[str, tuple[int, ...]], other: Mapping[str, tuple[int, ...]]) -> str | None:
    """Why two adapters cannot be of one base: a layer has other widths (only ranks may differ), or layers lie
    elsewhere (`...model.layers.0`, `...transformer.h.0`)."""
    for name in sorted(own.keys() & other.keys()):
        width = 1 if ".lora_A." in name else 0
        if own[name][width] != other[name][width]:
            return f"{name!r} is {own[name][width]} wide, and {other[name][width]} in that"
    stems = [{re.split(r"\.\d+\.", name)[0] for name in names} for names in (own, other)]
    return None if stems[0] & stems[1] else f"its layers are {min(stems[0])!r}, and {min(stems[1])!r} those"


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Only one process changes a panel at a time; nothing is written to see to that."""
    held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PanelError(f"another process changes the panel in {folder} now; wait for it") from error
        yield
    finally:
        os.close(held)
