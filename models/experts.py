"""A panel: the LoRA experts on one frozen base, as ordinary PEFT folders beside a file that says what they are.

    panel.json                      base, experts in their order, the router, and the panel before the last change
    experts/NAME/                   adapter_config.json, adapter_model.safetensors: what PEFT loads and vLLM serves
    routers/HASH/                   the router (models/router.py) that knows these experts
    removed/HASH/                   what was removed or replaced, for as long as it can be brought back

panel.json is the truth and replaced whole: files are put in their places before it and taken away after it, so that a
crash at any moment leaves the old panel or the new one, with nothing but files in excess. Files are never changed, only
linked and unlinked: what a change does not touch is the same bytes. Nothing here needs torch.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError

from models.engines.protocol import ADAPTER_CONFIG, ADAPTER_TENSORS
from models.settings import RESERVED_EXPERTS
from settings import SLUG, near
from settings.files import linked, sha256_of, sync_folder, write_whole

PANEL = "panel.json"
EXPERTS, ROUTERS, REMOVED = "experts", "routers", "removed"
FILES = (ADAPTER_CONFIG, ADAPTER_TENSORS)
BASE = "base"


class PanelError(ValueError):
    """A panel that cannot be read, is not what its panel.json says, or cannot be changed as asked."""

    user_message = True


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

    accuracy: float
    low: float
    high: float
    problems: int
    source: str


@dataclass(frozen=True)
class Expert:
    """One expert.

    Fields:
        domain: of the problems that it is for; "" where it is for all.
        rank: of its adapter.
        files: sha256 of its files by name.
    """

    name: str
    domain: str
    lineage: Lineage
    rank: int
    files: Mapping[str, str]
    record: Record | None = None

    @property
    def digest(self) -> str:
        """A short name of its weights."""
        return self.files[ADAPTER_TENSORS][:16]


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
    router: Mapping[str, str] | None = None
    change: str = ""
    before: Panel | None = None

    __pydantic_config__ = ConfigDict(extra="forbid")

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


def expert_of(source: Path, name: str, domain: str, lineage: Lineage, record: Record | None = None) -> Expert:
    """What a panel says of the adapter in a folder.

    Raises:
        PanelError: the folder holds no adapter, or one that is cut off.
    """
    config = _adapter_config(source)
    _must_be_whole(source / ADAPTER_TENSORS)
    return Expert(name, domain, lineage, config["r"], {file: sha256_of(source / file) for file in FILES}, record)


def read_panel(folder: Path) -> Panel:
    """The panel in a folder, every file of it the one that panel.json says.

    Raises:
        PanelError: there is none, or something was edited, cut off or taken away.
    """
    panel = parsed(folder)
    for expert in panel.experts:
        _must_be(expert_folder(folder, expert.name), expert.files, f"expert {expert.name!r}")
    if (router := router_folder(folder, panel)) is not None:
        _must_be(router, panel.router, "the router")
    return panel


def parsed(folder: Path) -> Panel:
    """What panel.json says, without a look at the files. Raises PanelError."""
    path = folder / PANEL
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise PanelError(f"{folder} holds no panel ({PANEL} is missing)") from None
    try:
        panel = TypeAdapter(Panel).validate_json(content, strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise PanelError(f"{path} cannot be read: {place}: {first['msg']}; it is not meant to be edited") from error
    for at, expert in enumerate(panel.experts):
        if fault := name_fault(expert.name):
            raise PanelError(f"{path}: {fault}")
        if expert.name in panel.names[:at]:
            raise PanelError(f"{path}: there are two experts {expert.name!r}; it is not meant to be edited")
    return panel


def write_panel(
    folder: Path, panel: Panel, sources: Mapping[str, Path] | None = None, router: Path | None = None
) -> Panel:
    """Make the folder hold this panel: what is new is linked from its source, what is no longer in it is kept for as
    long as an earlier panel knows it, and all else stays as it is.

    Args:
        sources: folder of each expert whose files are not in the panel's folder yet.
        router: folder of the router, if it is not there yet.

    Raises:
        PanelError: files are nowhere, or not those that the panel names; or an expert's would take the place of others
            under the same name, which no change of a panel does (a stage that trains an expert writes a folder anew).
        OSError: the disk.
    """
    old = parsed(folder) if (folder / PANEL).is_file() else None
    for expert in panel.experts:
        if old is not None and expert.name in old and old.expert(expert.name).files != expert.files:
            raise PanelError(f"{folder}: expert {expert.name!r} is there already, with other weights")
        _bring(folder, expert, old, (sources or {}).get(expert.name))
    if (place := router_folder(folder, panel)) is not None and not place.is_dir():
        if router is None:
            raise PanelError(f"{folder}: the panel's router is nowhere")
        _link_all(router, place, panel.router, "the router")
    for gone in old.experts if old is not None else ():
        if gone.name not in panel:
            place = folder / REMOVED / gone.digest
            if not place.is_dir():
                _link_all(expert_folder(folder, gone.name), place, gone.files, f"expert {gone.name!r}")
    write_whole(folder / PANEL, panel_json(panel))
    _sweep(folder, panel)
    return panel


def panel_json(panel: Panel) -> bytes:
    """panel.json's content."""
    return (json.dumps(asdict(panel), indent=1, ensure_ascii=False) + "\n").encode()


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


def _bring(folder: Path, expert: Expert, old: Panel | None, source: Path | None) -> None:
    """See that the expert's files are in their place."""
    place = expert_folder(folder, expert.name)
    known = old is not None and expert.name in old
    if not known:
        shutil.rmtree(place, ignore_errors=True)  # left by a change that did not come to its end
    if place.is_dir():
        return
    same = [one.name for one in old.experts if one.files == expert.files] if old is not None else []
    found = [source, *(expert_folder(folder, name) for name in same), folder / REMOVED / expert.digest]
    for candidate in found:
        if candidate is not None and candidate.is_dir():
            _link_all(candidate, place, expert.files, f"expert {expert.name!r}")
            return
    raise PanelError(f"{folder}: the files of expert {expert.name!r} are nowhere")


def _link_all(source: Path, place: Path, files: Mapping[str, str], what: str) -> None:
    """A folder with these files of another one, whole or not at all."""
    _must_be(source, files, what)
    partial = place.with_name(f".{place.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file in files:
        linked(source / file, partial / file)
    partial.rename(place)
    sync_folder(place.parent)


def _sweep(folder: Path, panel: Panel) -> None:
    """Take away what neither the panel nor one that it can go back to knows."""
    known = tuple(_history(panel))
    kept = {
        EXPERTS: set(panel.names),
        REMOVED: {expert.digest for one in known for expert in one.experts} - {e.digest for e in panel.experts},
        ROUTERS: {_digest_of(one.router) for one in known if one.router is not None},
    }
    for kind, names in kept.items():
        for place in sorted((folder / kind).iterdir()) if (folder / kind).is_dir() else ():
            if place.name not in names:
                shutil.rmtree(place)


def _history(panel: Panel | None) -> Iterator[Panel]:
    while panel is not None:
        yield panel
        panel = panel.before


def _must_be(place: Path, files: Mapping[str, str], what: str) -> None:
    for file, digest in files.items():
        path = place / file
        if not path.is_file():
            raise PanelError(f"{what}: {path} is missing; put it back")
        if sha256_of(path) != digest:
            raise PanelError(f"{what}: {path} is not what {PANEL} says (edited, or cut off); put it back")


def _adapter_config(source: Path) -> Mapping[str, object]:
    path = source / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise PanelError(f"{source} holds no adapter ({ADAPTER_CONFIG} is missing)") from None
    except ValueError as error:
        raise PanelError(f"{path} is no JSON: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA" or not isinstance(config.get("r"), int):
        raise PanelError(f"{path} is not that of a LoRA adapter")
    return config


def _must_be_whole(path: Path) -> None:
    """A safetensors file says in its header how long it is."""
    if not path.is_file():
        raise PanelError(f"{path.parent} holds no adapter ({path.name} is missing)")
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length < 2**27 else b""
    try:
        tensors = {name: about for name, about in json.loads(header).items() if name != "__metadata__"}
        end = max((about["data_offsets"][1] for about in tensors.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError):
        tensors, end = {}, -1
    if not tensors or 8 + length + end != path.stat().st_size:
        raise PanelError(f"{path} is cut off or no safetensors file; put the whole file there")


def _digest_of(files: Mapping[str, str]) -> str:
    return hashlib.sha256("".join(files[name] for name in sorted(files)).encode()).hexdigest()[:16]
