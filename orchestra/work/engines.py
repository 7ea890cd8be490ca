"""The engines of a process, kept for as long as anything may ask them: over the stages of a run, and over the runs of
an experiment, whose arms mostly differ in other things than what is served."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from models.engines.start import Capacity
from models.settings import Serving

if TYPE_CHECKING:
    from models.engines.protocol import Engine

KEYS = tuple(Serving.model_fields)


@dataclass(frozen=True)
class Started:
    """An engine, and what it was started with."""

    model: str
    serving: Serving
    capacity: Capacity
    engine: Engine

    def serves(self, model: str, serving: Serving, capacity: Capacity) -> bool:
        """Whether it can take the place of one that is started so."""
        same = all(getattr(self.serving, key) == getattr(serving, key) for key in KEYS)
        return (
            same
            and self.model == model
            and self.capacity.max_model_len >= capacity.max_model_len
            and self.capacity.max_num_seqs >= capacity.max_num_seqs
            and self.capacity.lora_rank == capacity.lora_rank
        )


@dataclass
class Engines:
    """Those that are in use, and those whose memory was taken back. A run that asks for longer texts than the engine
    has room for gets another one.

    Fields:
        kept: a later run may ask the same teachers: on a CPU their memory is not taken back.
    """

    kept: bool = False
    _awake: list[Started] = field(default_factory=list)
    _resting: list[Engine] = field(default_factory=list)

    def get(self, model: str, serving: Serving, capacity: Capacity, start: Callable[[Capacity], Engine]) -> Engine:
        """One that serves this, started where there is none."""
        for one in self._awake:
            if one.serves(model, serving, capacity):
                return one.engine
        engine = start(capacity)
        self._awake.append(Started(model, serving, capacity, engine))
        return engine

    def only(self, models: set[str]) -> bool:
        """Whether no other models' engines were started, resting ones included: vLLM can take back the memory of one
        engine in a process."""
        return not self._resting and {one.model for one in self._awake} <= models

    def release(self, model: str) -> None:
        """Take the memory of a model's engines back."""
        if not self.kept or torch.cuda.is_available():
            gone = [one for one in self._awake if one.model == model]
            self._awake = [one for one in self._awake if one.model != model]
            for one in gone:
                one.engine.rest()
                self._resting.append(one.engine)

    def close(self) -> None:
        """The last call, when the process is about to end."""
        for engine in [*(one.engine for one in self._awake), *self._resting]:
            engine.close()
        self._awake.clear()
        self._resting.clear()
