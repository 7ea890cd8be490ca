"""A panel served as if it were one policy: each prompt is answered by the expert, or the base, that it is routed to.

One engine, asked expert by expert: each is pushed with the check that it arrived (serving.py), and answers its own
prompts. Folded weights have no LoRA cost per token, which on a CPU is more than a push costs (benchmarks/experts.md).
Seeds belong to prompts, so a completion is that of the expert asked alone.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from models.adapters import load_adapters
from models.engines.protocol import Completion, Engine, EngineError, Sampling, Tokens
from models.engines.serving import Served
from models.experts import BASE, Panel, expert_folder

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def adapter_name(expert: str) -> str | None:
    """What an expert is called among a model's adapters, where its name may be that of a layer; None is the base."""
    return None if expert == BASE else f"expert-{expert}"


def panel_model(base: "PreTrainedModel", panel: Panel, folder: Path) -> "PeftModel":
    """The base with all experts of a panel on it (see `adapter_name`), none of them trainable."""
    folders = {adapter_name(name): expert_folder(folder, name) for name in panel.names}
    model = load_adapters(base, folders)
    model.requires_grad_(False)
    return model


class RoutedEngine:
    """The part of an engine that evaluation needs, for one list of prompts.

    Args:
        engine: as all processes ask it together; served: this process's own, by which an expert gets there.
        model: see `panel_model`.
        experts: for each prompt the name of its expert, or `base`.
    """

    def __init__(self, engine: Engine, served: Served, model: "PeftModel", experts: Sequence[str]) -> None:
        self._engine, self._served, self._model, self._experts = engine, served, model, tuple(experts)

    @property
    def kind(self) -> str:
        return self._engine.kind

    @property
    def dtype(self) -> "torch.dtype":
        return self._engine.dtype

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
        answered: list[list[Completion]] = [[] for _ in prompts]
        for expert in dict.fromkeys(sorted(self._experts)):
            own = [at for at, name in enumerate(self._experts) if name == expert]
            self._served.push(self._model, adapter=adapter_name(expert))
            groups = self._engine.generate(
                [prompts[at] for at in own], sampling, None if seeds is None else [seeds[at] for at in own], progress
            )
            for at, group in zip(own, groups, strict=True):
                answered[at] = group
        return answered
