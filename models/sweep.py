"""A policy measured on its way: every n optimizer steps, and after the last one, with nothing of its training changed.

A line is written before the checkpoint of the same step is, so that a checkpoint has all lines up to it, and a run that
goes on from one drops those behind it, which it will write again. The adapters of the steps lie among the checkpoints,
which are deleted when the stage is finished and not before: a run killed after training chooses again. Once there is a
checkpoint, from which a killed run goes on, only the best one up to it can still be chosen, and the others go.
"""

import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import TrainerCallback, TrainerState

from models.adapters import read_adapter, save_adapter, write_adapter
from models.processes import Processes
from models.settings import TrainingSettings
from models.training import without_dropout

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import TrainerControl, TrainingArguments

FILE = "sweep.jsonl"
Line = Mapping[str, float]
Measure = Callable[[int], Line]
"""From the step to what is to be written of it; `accuracy` among it. Called on every process."""


@contextmanager
def undisturbed(policy: "PeftModel") -> Iterator[None]:
    """Inside, the policy is in eval mode; afterwards it is in the mode that it was in, and so is every source of random
    numbers."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices), without_dropout(policy):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


class Sweep(TrainerCallback):
    """Measures the policy at the steps that `settings.evaluate_every` says; comes behind the file of step metrics.

    Args:
        policy: that is trained.
        folder: gets sweep.jsonl, and the adapters of the steps where the best one is to be kept.
        processes: that train it together; the first one writes.
    """

    def __init__(
        self,
        policy: "PeftModel",
        folder: Path,
        settings: TrainingSettings,
        measure: Measure,
        processes: Processes | None = None,
    ) -> None:
        self._policy, self._folder, self._settings, self._measure = policy, folder, settings, measure
        self._processes = processes or Processes()

    def on_train_begin(
        self, args: "TrainingArguments", state: TrainerState, control: "TrainerControl", **_: object
    ) -> None:
        self._processes.once(lambda: self._write([line for line in read_sweep(self._folder)
                                                  if line["step"] <= state.global_step]))  # fmt: skip

    def on_log(
        self,
        args: "TrainingArguments",
        state: TrainerState,
        control: "TrainerControl",
        logs: Mapping[str, float] | None = None,
        **_: object,
    ) -> None:
        step = state.global_step
        if not logs or "train_runtime" in logs or not self._due(step):
            return
        with undisturbed(self._policy):
            if self._settings.keep == "best":
                self._processes.once(lambda: save_adapter(self._policy, adapter_at(self._folder, step)))
            line = {"step": step} | dict(self._measure(step))
        self._processes.once(lambda: self._write([line], "a"))

    def on_save(self, args: "TrainingArguments", state: TrainerState, control: "TrainerControl", **_: object) -> None:
        self._processes.once(self._forget_worse)

    def _forget_worse(self) -> None:
        if not (lines := read_sweep(self._folder)):
            return
        best = adapter_at(self._folder, best_of(lines)["step"])
        for place in best.parent.glob("*"):
            if place != best:
                shutil.rmtree(place)

    def _due(self, step: int) -> bool:
        return step % self._settings.evaluate_every == 0 or step == self._settings.steps

    def _write(self, lines: Sequence[Line], mode: str = "w") -> None:
        with (self._folder / FILE).open(mode) as file:
            file.writelines(json.dumps(line, allow_nan=False) + "\n" for line in lines)


def read_sweep(folder: Path) -> list[Line]:
    """The lines of a stage's sweep.jsonl in the order of the steps, but for one that was cut off."""
    path = folder / FILE
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def best_of(lines: Sequence[Line]) -> Line:
    """The line with the highest accuracy, of equal ones the earliest."""
    return max(lines, key=lambda line: (line["accuracy"], -line["step"]))


def go_back_to(policy: "PeftModel", folder: Path, step: int) -> None:
    """Make the policy what it was after a step that was measured."""
    place = adapter_at(folder, step)
    write_adapter(policy, read_adapter(place), source=str(place))


def adapter_at(folder: Path, step: int) -> Path:
    """Where a stage's adapter after that step is until the stage is finished."""
    return folder / "checkpoints" / "sweep" / f"step-{step}"
