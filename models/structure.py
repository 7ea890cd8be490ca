"""What a panel is built of, read from its files without torch; `models.population.structure_hash` sums it up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from models.expert_files import PanelError, adapter_config, router_arms
from models.experts import Panel, expert_folder, parsed, router_folder
from models.population import ExpertShape, structure_hash


def structure_of(panel: Panel, places: Mapping[str, Path], arms: Sequence[str] = ()) -> str:
    """Of a panel whose files lie anywhere.

    Args:
        places: the folder of each expert; arms: of its router, none where it has none.

    Raises:
        PanelError: an expert's config is missing, or says not what a LoRA adapter's says.
    """
    shapes = {name: _shape(places[name]) for name in panel.names}
    return structure_hash(panel.base_sha256 or panel.base, shapes, arms)


def structure_in(folder: Path) -> str:
    """Of the panel in a folder. Only what is asked for is read: see `read_panel` for whether the files are whole.

    Raises:
        PanelError: there is no panel, or what it is built of is not to be read.
    """
    panel = parsed(folder)
    router = router_folder(folder, panel)
    places = {name: expert_folder(folder, name) for name in panel.names}
    return structure_of(panel, places, () if router is None else router_arms(router))


def _shape(place: Path) -> ExpertShape:
    config = adapter_config(place)
    alpha, targets = config.get("lora_alpha"), config.get("target_modules")
    # PEFT takes a pattern, too, or leaves it to the model's family
    named = targets if isinstance(targets, list) else [str(targets)]
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise PanelError(f"{place}: lora_alpha is {alpha!r}, and a number is meant; put the expert's own config there")
    return ExpertShape(config["r"], alpha, tuple(map(str, named)))
