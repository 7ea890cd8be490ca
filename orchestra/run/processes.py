"""What a process takes of the machine before torch is imported. How the processes of a run work together:
models/processes.py."""

from __future__ import annotations

import os

from models.processes import count


def take_one_gpu(visible: int) -> str | None:
    """Without a launcher a run is one process on one GPU; before torch is imported. Returns what to tell the user.

    transformers would spread a batch over all GPUs it sees (nn.DataParallel), which TRL's GRPO refuses.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if count() > 1 or visible < 2 or (named and "," not in named):
        return None
    first = named.split(",")[0] or "0"
    os.environ["CUDA_VISIBLE_DEVICES"] = first
    return f"one process, so one GPU of {visible}; for all: torchrun --nproc-per-node gpu -m orchestra run ..."


def yield_cores() -> None:
    """Let idle OpenMP threads sleep instead of spin; before torch is imported.

    A spinning thread keeps its core from the one it waits for: beside one other busy process on a 2-core machine,
    evaluation took ten times as long (11 instead of 65 problems a second).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
