"""A panel served as if it were one policy: each prompt is answered by the expert, or the base, that it is routed to.

One engine for all, in either of two ways, as the run syncs its policies (`which_sync`). `adapter`: all prompts in one
batch, each under its own expert. `folded`: expert by expert, each pushed with the check that it arrived, and asked its
own prompts; folded weights have no LoRA cost per token, which on a CPU is more than pushes cost
(benchmarks/experts.md). Seeds belong to prompts, so a completion is that of the expert asked alone.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from models.adapters import load_adapters
from models.engines.protocol import Completion, EngineError, PanelEngine, Sampling, Tokens
from models.engines.serving import Served
from models.experts import BASE

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def adapter_name(expert: str) -> str | None:
    """What an expert is called among a model's adapters, where its name may be that of a layer; None is the base."""
    return None if expert == BASE else f"expert-{expert}"


def panel_model(base: "PreTrainedModel", experts: Mapping[str, Path]) -> "PeftModel":
    """The base with experts on it, by name the folder of each (see `adapter_name`), none of them trainable."""
    model = load_adapters(base, {adapter_name(name): folder for name, folder in experts.items()})
    model.requires_grad_(False)
    return model


class RoutedEngine:
    """The part of an engine that evaluation needs, for one list of prompts.

    Args:
        engine: as all processes ask it together; served: this process's own, by which experts get there.
        model: see `panel_model`.
        experts: for each prompt the name of its expert, or `base`; folders: where the experts lie.
    """

    def __init__(
        self,
        engine: PanelEngine,
        served: Served,
        model: "PeftModel",
        experts: Sequence[str],
        folders: Mapping[str, Path],
    ) -> None:
        self._engine, self._served, self._model = engine, served, model
        self._experts, self._folders = tuple(experts), folders

    def generate(
        self,
        prompts: Sequence[Tokens],
        sampling: Sampling,
        seeds: Sequence[int] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        """Raises EngineError where an expert is not what the engine then serves."""
        if len(prompts) != len(self._experts):
            raise EngineError(f"{len(prompts)} prompts for {len(self._experts)} routes")
        needed = [name for name in dict.fromkeys(sorted(self._experts)) if name != BASE]
        if self._served.sync == "adapter":
            self._served.push_panel(
                self._model,
                {name: adapter_name(name) for name in needed},
                {name: self._folders[name] for name in needed},
            )
            experts = [None if name == BASE else name for name in self._experts]
            return self._engine.generate_routed(prompts, experts, sampling, seeds, progress)
        answered: list[list[Completion]] = [[] for _ in prompts]
        for expert in (*([BASE] if BASE in self._experts else []), *needed):
            own = [at for at, name in enumerate(self._experts) if name == expert]
            self._served.push(self._model, adapter=adapter_name(expert))
            groups = self._engine.generate(
                [prompts[at] for at in own], sampling, None if seeds is None else [seeds[at] for at in own], progress
            )
            for at, group in zip(own, groups, strict=True):
                answered[at] = group
        return answered
