"""Where models lie. Imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path

from settings.hub import MAIN, HubName


@dataclass(frozen=True)
class Place:
    """What libraries take a model by: a folder, or a Hub id with a revision (which a folder does not have)."""

    path: str
    revision: str = MAIN


def model_place(name: str) -> Place:
    """`embedded/<name>` is shipped beside this file; a folder is itself; the Hub client gets anything else, taken apart
    (settings/hub.py)."""
    shipped = Path(__file__).parent / name
    if name.startswith("embedded/") and shipped.is_dir():
        return Place(str(shipped))
    hub = hub_model(name)
    return Place(name) if hub is None else Place(hub.repo, hub.revision or MAIN)


def hub_model(name: str) -> HubName | None:
    """The name of a model on the Hub; None for one that is shipped or in a folder."""
    local = name.startswith(("embedded/", ".", "/", "~")) or Path(name).is_dir()
    return None if local else HubName.parse(name)


def model_path(name: str) -> str:
    """The folder or Hub id alone."""
    return model_place(name).path
