"""A panel: the LoRA experts on one frozen base, as ordinary PEFT folders beside a file that says what they are.

    panel.json                      base, experts in their order, the router, and the panels before the last changes
    experts/NAME/                   adapter_config.json, adapter_model.safetensors: what PEFT loads and vLLM serves;
                                    and optimizer.safetensors, from which its training goes on
    routers/HASH/                   the router (models/router.py) that knows these experts
    removed/HASH/                   what was removed or replaced, for as long as it can be brought back

panel.json is the truth and replaced whole: files are put in their places before it and taken away after it, so that a
crash at any moment leaves the old panel or the new one, with nothing but files in excess. `.changing` says which those
may be; the next change takes them away, and never what somebody else has put there. Files are never changed, only put
there and unlinked: what a change does not touch is the same bytes. Nothing here needs torch.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from models.engines.protocol import ADAPTER_CONFIG, ADAPTER_TENSORS, NOT_PLAIN
from models.expert_files import (
    FILES,
    MOMENTS,
    NOT_EDITED,
    Hashes,
    PanelError,
    adapter_config,
    must_be_files,
    router_arms,
    tensor_shapes,
)
from models.settings import RESERVED_EXPERTS
from settings import SLUG, Count, Share, near
from settings.files import linked, sha256_of, sync_folder, write_whole

PANEL, CHANGING = "panel.json", ".changing"
VERSION = 1
EXPERTS, ROUTERS, REMOVED = "experts", "routers", "removed"
BASE = "base"


@dataclass(frozen=True)
class Lineage:
    """Where an expert comes from.

    Fields:
        stage: that trained it last; "" of one that was added from a folder.
        data: what it was trained on: sources of traces or problems.
        parent: the expert that it started from, or `base`.
    """

    stage: str
    data: tuple[str, ...] = ()
    parent: str = BASE


@dataclass(frozen=True)
class Record:
    """What an expert did when it was measured last: accuracy with its interval, on so many problems, and which."""

    accuracy: Share
    low: float
    high: float
    problems: Count
    source: str


@dataclass(frozen=True)
class RemovalRecord:
    """What taking an expert out of its panel is predicted to cost (evals/removal.py).

    Fields:
        load: share of the held-out problems that is routed to it.
        difference: accuracy without it minus with it, and its interval, `low` to `high`.
    """

    load: Share
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Expert:
    """One expert.

    Fields:
        domains: of the problems that it is for; none where it is for all.
        rank: of its adapter.
        files: sha256 of its files by name.
        cost: of its removal from this panel with this router; None where nobody has measured it.
    """

    name: str
    domains: tuple[str, ...]
    lineage: Lineage
    rank: Count
    files: Hashes
    record: Record | None = None
    cost: RemovalRecord | None = None

    @property
    def digest(self) -> str:
        """A short name of its files."""
        return _digest_of(self.files)


@dataclass(frozen=True)
class Panel:
    """Experts on a base, in the order in which they came.

    Fields:
        base: as the recipe names it; base_sha256: see models/base.py, "" where nobody has loaded it.
        router: sha256 of the router's files by name; None where there is none.
        change: what was done last, in words; before: the panel to which `undo` goes back.
    """

    base: str
    base_sha256: str
    experts: tuple[Expert, ...] = ()
    router: Annotated[Hashes, Field(min_length=1)] | None = None
    change: str = ""
    before: Panel | None = None

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(expert.name for expert in self.experts)

    def expert(self, name: str) -> Expert:
        """Raises PanelError where there is none of that name."""
        for expert in self.experts:
            if expert.name == name:
                return expert
        listed = ", ".join(self.names) or "none"
        raise PanelError(f"there is no expert {name!r} in the panel (experts: {listed}){near(name, self.names)}")

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def with_expert(self, expert: Expert) -> Panel:
        """With this one: in the place of the one of its name, or as the last."""
        if expert.name in self:
            return replace(self, experts=tuple(expert if one.name == expert.name else one for one in self.experts))
        return replace(self, experts=(*self.experts, expert))

    def without_costs(self) -> Panel:
        """The same experts where others may answer: what the removal of one would cost then, nobody knows."""
        return replace(self, experts=tuple(replace(one, cost=None) for one in self.experts))


def name_fault(name: str) -> str | None:
    """What is wrong with an expert's name, if anything."""
    if not re.fullmatch(SLUG, name) or len(name) > 40:
        return f"{name!r} is no name for an expert: up to 40 lower-case letters, digits, '-' and '_'"
    if name in RESERVED_EXPERTS:
        return f"{name!r} has a meaning of its own; choose another name for the expert"
    return None


def expert_folder(folder: Path, name: str) -> Path:
    """Where the expert of that name lies in a panel's folder."""
    return folder / EXPERTS / name


def router_folder(folder: Path, panel: Panel) -> Path | None:
    """Where the panel's router lies, if it has one."""
    return None if panel.router is None else folder / ROUTERS / _digest_of(panel.router)


def expert_of(
    source: Path, name: str, domains: tuple[str, ...], lineage: Lineage, record: Record | None = None
) -> Expert:
    """What a panel says of the adapter in a folder.

    Raises:
        PanelError: the folder holds no adapter, or one that is cut off or more than plain LoRA.
    """
    config, shapes = adapter_config(source), tensor_shapes(source)
    if more := [key for key in NOT_PLAIN if config.get(key) not in (None, False, "none", {}, [])]:
        raise PanelError(f"{source / ADAPTER_CONFIG}: an expert is plain LoRA, and this is more ({', '.join(more)})")
    for tensor, shape in sorted(shapes.items()):
        rank = {".lora_A.weight": shape[:1], ".lora_B.weight": shape[1:]}.get(tensor[-14:])
        if len(shape) != 2 or rank != (config["r"],):
            fault = f"{tensor!r} of shape {shape} is no part of a LoRA adapter of rank {config['r']}"
            raise PanelError(f"{source / ADAPTER_TENSORS}: {fault}, which {ADAPTER_CONFIG} says it is")
    files = {file: sha256_of(source / file) for file in (*FILES, MOMENTS) if file in FILES or (source / file).is_file()}
    return Expert(name, domains, lineage, config["r"], files, record)


def router_files(source: Path) -> dict[str, str]:
    """What a panel says of the router in a folder: sha256 of its files by name."""
    return {path.name: sha256_of(path) for path in sorted(source.iterdir())}


def read_panel(folder: Path) -> Panel:
    """The panel in a folder, every file of it the one that panel.json says.

    Raises:
        PanelError: there is none; something was edited, cut off or taken away; or its router knows an expert that is
            not there.
    """
    panel = parsed(folder)
    for expert in panel.experts:
        place = expert_folder(folder, expert.name)
        must_be_files(place, expert.files, f"expert {expert.name!r}")
        if (rank := adapter_config(place)["r"]) != expert.rank:
            fault = f"expert {expert.name!r} is said to have rank {expert.rank}, and has {rank}"
            raise PanelError(f"{folder / PANEL}: {fault}; {NOT_EDITED}")
    if (router := router_folder(folder, panel)) is not None:
        must_be_files(router, panel.router, "the router")
        if gone := [arm for arm in router_arms(router) if arm not in (BASE, *panel.names)]:
            listed = ", ".join(panel.names) or "none"
            fault = f"the router routes to {gone[0]!r}, which is no expert of the panel (experts: {listed})"
            raise PanelError(f"{folder / PANEL}: {fault}; {NOT_EDITED}")
    return panel


def parsed(folder: Path) -> Panel:
    """What panel.json says, without a look at the files. Raises PanelError."""
    path = folder / PANEL
    try:
        stored = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise PanelError(f"{folder} holds no panel ({PANEL} is missing)") from None
    except (ValueError, RecursionError) as error:
        raise PanelError(f"{path} is no JSON ({error}); {NOT_EDITED}") from error
    version = stored.pop("version", None) if isinstance(stored, dict) else None
    if type(version) is int and version > VERSION:
        raise PanelError(f"{path} is of version {version}, and this program knows up to {VERSION}; update orchestra-rl")
    earlier = stored.pop("before", None) if isinstance(stored, dict) else None
    if version != VERSION or type(version) is not int or not isinstance(earlier, list):
        raise PanelError(f"{path} has no version, or not all that a panel has; {NOT_EDITED}")
    try:
        states = TypeAdapter(tuple[Panel, ...]).validate_json(json.dumps([stored, *earlier]))
    except ValidationError as error:
        (at, *keys), message = error.errors()[0]["loc"], error.errors()[0]["msg"]
        place = ".".join(map(str, (*(("before", at - 1) if at else ()), *keys)))
        raise PanelError(f"{path}: {place}: {message}; {NOT_EDITED}") from error
    panel = None
    for state in reversed(states):
        if fault := _fault(state):
            raise PanelError(f"{path}: {fault}; {NOT_EDITED}")
        panel = replace(state, before=panel)
    return panel


def write_panel(
    folder: Path,
    panel: Panel,
    sources: Mapping[str, Path] | None = None,
    router: Path | None = None,
    *,
    copy: bool = False,
) -> Panel:
    """Make the folder hold this panel: what is new is linked from its source, what is no longer in it is kept for as
    long as an earlier panel knows it, and all else stays as it is. After any error the folder is what it was.

    Args:
        sources: folder of each expert whose files are not in the panel's folder yet.
        router: folder of the router, if it is not there yet.
        copy: copy sources instead, where whoever they belong to may write into them.

    Raises:
        PanelError: files are nowhere, or not those that the panel names; or an expert's would take the place of others
            under the same name, which no change of a panel does (a stage that trains an expert writes a folder anew).
        OSError: the disk.
    """
    old = parsed(folder) if (folder / PANEL).is_file() else None
    before, after = _places(old), _places(panel)
    given = {f"{EXPERTS}/{name}": source for name, source in (sources or {}).items()}
    if router is not None and panel.router is not None:
        given[f"{ROUTERS}/{_digest_of(panel.router)}"] = router
    _sweep(folder, before)
    new = {place: files for place, files in after.items() if place not in before or not (folder / place).is_dir()}
    for place in after:
        if after[place] != before.get(place, after[place]):
            raise PanelError(f"{folder / place} is there already, with other weights")
        if place not in before and (folder / place).exists():
            raise PanelError(f"{folder / place} is there, and the panel does not know it; move it away")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        write_whole(folder / CHANGING, "".join(f"{place}\n" for place in sorted({*before, *after})).encode())
        for place, files in new.items():
            same = [one for one in before if before[one] == files and (folder / one).is_dir()]
            if place not in given and not same:
                raise PanelError(f"{folder}: the files of {place} are nowhere; put them back")
            source = given[place] if place in given else folder / same[0]
            _put(source, folder / place, files, copy=copy if place in given else same[0] in after)
        write_whole(folder / PANEL, panel_json(panel))
    finally:
        _sweep(folder, _places(parsed(folder)) if (folder / PANEL).is_file() else {})
    return panel


def panel_json(panel: Panel) -> bytes:
    """panel.json's content: the panel, and those before it in a list, the last one first."""
    states = [asdict(replace(one, before=None)) for one in _history(panel)]
    for state in states:
        del state["before"]
        for expert in state["experts"]:
            if expert["cost"] is None:  # a panel from before there were any is the same bytes
                del expert["cost"]
    content = {"version": VERSION} | states[0] | {"before": states[1:]}
    return (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def must_be_untouched(before: Panel, after: Panel, but: Sequence[str] = ()) -> None:
    """Training an expert changes no other one: its files are the same, byte for byte.

    Raises:
        PanelError: they are not.
    """
    for expert in before.experts:
        if expert.name in but:
            continue
        if expert.name not in after or after.expert(expert.name).files != expert.files:
            raise PanelError(f"expert {expert.name!r} was not trained, but its files are not what they were")


def _fault(panel: Panel) -> str | None:
    """What a panel's types do not say."""
    for at, expert in enumerate(panel.experts):
        if fault := name_fault(expert.name):
            return fault
        if expert.name in panel.names[:at]:
            return f"there are two experts {expert.name!r}"
        if set(expert.files) - {MOMENTS} != set(FILES):
            return f"expert {expert.name!r} must have the files {', '.join(FILES)}, may have {MOMENTS}, and no other"
    return None if panel.before is None else "before: a list of panels is meant"


def _places(panel: Panel | None) -> dict[str, Hashes]:
    """Every folder below the panel's that it, or one to which it can go back, needs, and what is in it."""
    known = tuple(_history(panel))
    places = {f"{EXPERTS}/{expert.name}": expert.files for expert in (panel.experts if panel is not None else ())}
    present = list(places.values())
    for one in known:
        places |= {f"{REMOVED}/{gone.digest}": gone.files for gone in one.experts if gone.files not in present}
        if one.router is not None:
            places[f"{ROUTERS}/{_digest_of(one.router)}"] = one.router
    return places


def _put(source: Path, place: Path, files: Hashes, *, copy: bool) -> None:
    """A folder with these files of another one, on the disk before panel.json is."""
    must_be_files(source, files, f"for {place.parent.name}/{place.name}")
    place.mkdir(parents=True)
    for file in files:
        (shutil.copyfile if copy else linked)(source / file, place / file)
        sync_folder(place / file)
    for folder in (place, place.parent, place.parent.parent):
        sync_folder(folder)


def _sweep(folder: Path, kept: Mapping[str, Hashes]) -> None:
    """Take away what a change has left, done or broken off: of the places that it was about, those not kept."""
    for file in (CHANGING, PANEL):
        for partial in folder.glob(f".{file}.*.tmp"):
            partial.unlink()
    if not (folder / CHANGING).is_file():
        return
    for place in (folder / CHANGING).read_text(encoding="utf-8").splitlines():
        ours = re.fullmatch(rf"({EXPERTS}|{ROUTERS}|{REMOVED})/[a-z0-9][a-z0-9_-]*", place)
        if ours and place not in kept and (folder / place).exists():
            shutil.rmtree(folder / place)
    for kind in (EXPERTS, ROUTERS, REMOVED):
        if (folder / kind).is_dir() and not any((folder / kind).iterdir()):
            (folder / kind).rmdir()
    (folder / CHANGING).unlink()


def _history(panel: Panel | None) -> Iterator[Panel]:
    while panel is not None:
        yield panel
        panel = panel.before


def _digest_of(files: Hashes) -> str:
    return hashlib.sha256("".join(files[name] for name in sorted(files)).encode()).hexdigest()[:16]
