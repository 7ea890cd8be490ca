"""Merging: the experts of a panel become one adapter, through PEFT's own `add_weighted_adapter`.

What PEFT (0.21) offers, and what is taken of it:

    cat        w_i s_i A_i stacked, B_i side by side, s_i = alpha_i / rank_i: exactly sum_i w_i s_i B_i A_i, any ranks
    svd        that sum decomposed, the largest singular values kept: any ranks, exact at the sum of the ranks
    ties_svd   TIES on the whole updates s_i B_i A_i, decomposed: any ranks
    linear     (sum_i c_i B_i)(sum_i c_i A_i), c_i = sqrt(w_i s_i): with cross terms B_i A_j, which belong to no expert;
               equal ranks only
    ties       TIES on A and B each: what is dropped and outvoted there depends on how a product was factored; equal
               ranks only

The last two are never asked for. A single adapter PEFT copies, whatever it is asked to do with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from models.adapters import POLICY, load_adapter
from models.base import one_thread
from models.engines.protocol import LORA_RANKS
from models.engines.routed import adapter_name, panel_model
from models.experts import Panel, PanelError, expert_folder
from models.settings import MergeSettings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

DROPPING = ("ties", "dare_ties")
"""The rules to which `density` means something."""


@dataclass(frozen=True)
class Blend:
    """What a merge is made of.

    Fields:
        weights: of the experts that have a part in it, in the panel's order.
        combination: PEFT's `combination_type`; None: the one expert as it is.
        rank: of the result, before `cat` or the layers' shapes have a say.
    """

    weights: Mapping[str, float]
    combination: Literal["cat", "svd", "ties_svd", "dare_ties_svd"] | None
    rank: int


def blend(panel: Panel, settings: MergeSettings, load: Mapping[str, float], best: str | None = None) -> Blend:
    """What a rule makes of a panel.

    Args:
        load: share of the problems by arm, the base among them: it has a part in the merge, of an update that is 0, so
            that a by-load merge's weights add up to 1 less the base's share.
        best: the expert that is best on other answers than it will be scored on. None: the one with the best record.

    Raises:
        PanelError: the panel has not what the rule needs.
    """
    rule, ranks = settings.merge, {expert.name: expert.rank for expert in panel.experts}
    if not ranks:
        raise PanelError(f"merge: {rule}: the panel has no experts; train one with `expert: name`")
    if rule == "best":
        name = best or best_expert(panel)
        return Blend({name: 1.0}, None, ranks[name])
    if len(ranks) < 2:
        (name,) = ranks
        raise PanelError(f"merge: {rule}: the panel has one expert, {name!r}; `merge: best` takes it as it is")
    if rule == "by-load":
        weights = {name: load[name] for name in ranks if load.get(name)}
        if not weights:
            raise PanelError("merge: by-load: no expert is asked any problem; take another rule, `linear` say")
    else:
        weights = dict.fromkeys(ranks, 1.0 if rule in DROPPING else 1 / len(ranks))
    if rule in ("by-load", "linear") and settings.rank is None:
        rank = sum(ranks[name] for name in weights)
        if rank > LORA_RANKS[-1]:
            raise PanelError(
                f"merge: {rule}: the experts have rank {rank} together, and engines serve up to {LORA_RANKS[-1]}; "
                f"say a lower one (`rank: {max(ranks.values())}`)"
            )
        return Blend(weights, "cat", rank)
    return Blend(
        weights, f"{rule}_svd" if rule in DROPPING else "svd", settings.rank or max(ranks[name] for name in weights)
    )


def best_expert(panel: Panel) -> str:
    """The expert with the best record; of equal ones the earlier.

    Raises:
        PanelError: one has no record, or they were measured on different problems.
    """
    without = [expert.name for expert in panel.experts if expert.record is None]
    if without:
        raise PanelError(f"merge: best: expert {without[0]!r} was never measured; take another rule, or train it here")
    measured = {(expert.record.source, expert.record.problems): expert.name for expert in panel.experts}
    if len(measured) > 1:
        told = ", ".join(f"{name!r} on {count} of {source}" for (source, count), name in measured.items())
        raise PanelError(f"merge: best: the experts were measured on different problems ({told}); take another rule")
    return max(panel.experts, key=lambda expert: expert.record.accuracy).name


def merged_model(
    base: PreTrainedModel, panel: Panel, folder: Path, blend: Blend, settings: MergeSettings, *, seed: int
) -> PeftModel:
    """The base with the merged adapter as its policy; the experts are beside it, as they were.

    Args:
        folder: the panel's; seed: of what is dropped at random.

    Raises:
        AdapterError: an expert cannot be read.
        PanelError: `rank` is more than a layer's update can have.
    """
    folders = {name: expert_folder(folder, name) for name in blend.weights}
    if blend.combination is None:
        (place,) = folders.values()
        return load_adapter(base, place)
    device = base.device
    # making room for adapters draws random numbers, too
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), one_thread():
        model = panel_model(base, folders)
        _add_merged(model, blend, settings, seed)
    model.set_adapter(POLICY)
    return model


def _add_merged(model: PeftModel, blend: Blend, settings: MergeSettings, seed: int) -> None:
    """The merge as the model's policy, beside the experts."""
    weights = {adapter_name(name): weight for name, weight in blend.weights.items()}
    names = list(weights)
    rank = blend.rank if blend.combination == "cat" else _rank(model, names, blend.rank, asked=settings.rank)
    if len(names) == 1 and blend.combination != "cat":  # twice at half its weight, it is decomposed as several are
        names, weights = names * 2, {name: weight / 2 for name, weight in weights.items()}
    torch.manual_seed(seed)
    model.add_weighted_adapter(
        names,
        [weights[name] for name in names],
        POLICY,
        combination_type=blend.combination,
        svd_rank=rank,
        svd_full_matrices=False,  # the same numbers without a square matrix of a layer's width
        density=settings.density,
    )
    for name, parameter in model.named_parameters():
        if f".{POLICY}." in name:
            parameter.data = parameter.data.contiguous()  # of a decomposition, a view of larger factors


def _rank(model: PeftModel, adapters: list[str], rank: int, *, asked: int | None) -> int:
    """The rank of a decomposition: as asked, or as large as it may be where nothing was.

    Raises:
        PanelError: more is asked than the smallest layer has.
    """
    shapes = [
        (module.lora_A[name].in_features, module.lora_B[name].out_features)
        for module in model.modules()
        for name in adapters
        if name in getattr(module, "lora_A", {})
    ]
    most = min(min(shape) for shape in shapes)
    if asked is not None and asked > most:
        raise PanelError(f"rank: {asked} is more than the smallest adapted layer has; at most {most} here")
    return min(rank, most)
