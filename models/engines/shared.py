"""An engine each on several processes, asked as one: every process calls with all prompts and gets all completions.

Seeds belong to prompts, so it does not matter to a completion which process makes it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from models.engines.protocol import AdapterFiles, Completion, Engine, Sampling, Tokens, Weights
from models.processes import Processes

if TYPE_CHECKING:
    import torch


class SharedEngine:
    """This process's engine, and those of the others; see protocol.py. Only `generate` is shared out.

    Args:
        own: holds the same policy as the others'.
    """

    def __init__(self, own: Engine, processes: Processes) -> None:
        self._own, self._processes = own, processes

    @property
    def kind(self) -> str:
        return self._own.kind

    @property
    def dtype(self) -> "torch.dtype":
        return self._own.dtype

    @property
    def serves_adapters(self) -> bool:
        return self._own.serves_adapters

    def generate(
        self,
        prompts: Sequence[Tokens],
        sampling: Sampling,
        seeds: Sequence[int] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        return self._shared(
            len(prompts),
            lambda own, counted: self._own.generate(
                [prompts[i] for i in own], sampling, None if seeds is None else [seeds[i] for i in own], counted
            ),
            progress,
        )

    def _shared(
        self,
        count: int,
        generate: Callable[[Sequence[int], Callable[[int], None] | None], list[list[Completion]]],
        progress: Callable[[int], None] | None,
    ) -> list[list[Completion]]:
        """Of `progress` each process tells its own share times their number, which is what all have done by then."""
        told = 0

        def counted(more: int) -> None:
            nonlocal told
            more = min(more * self._processes.count, count - told)
            told += more
            progress(more)

        groups = self._processes.shared(count, lambda own: generate(own, None if progress is None else counted))
        if progress is not None and told < count:
            progress(count - told)
        return groups

    def generate_routed(
        self,
        prompts: Sequence[Tokens],
        experts: Sequence[str | None],
        sampling: Sampling,
        seeds: Sequence[int] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        return self._shared(
            len(prompts),
            lambda own, counted: self._own.generate_routed(
                [prompts[i] for i in own],
                [experts[i] for i in own],
                sampling,
                None if seeds is None else [seeds[i] for i in own],
                counted,
            ),
            progress,
        )

    def score(self, prompts: Sequence[Tokens], completions: Sequence[Tokens]) -> list[list[float]]:
        return self._own.score(prompts, completions)

    def sync_folded(self, weights: Weights) -> None:
        self._own.sync_folded(weights)

    def sync_adapter(self, adapter: AdapterFiles | None) -> None:
        self._own.sync_adapter(adapter)

    def sync_panel(self, adapters: Mapping[str, Path]) -> None:
        self._own.sync_panel(adapters)

    def score_routed(
        self, prompts: Sequence[Tokens], completions: Sequence[Tokens], expert: str | None
    ) -> list[list[float]]:
        return self._own.score_routed(prompts, completions, expert)

    def rest(self) -> None:
        self._own.rest()

    def close(self) -> None:
        self._own.close()
