"""What this machine is: cores, memory, GPUs. Without torch, so that `check` and `plan` answer at once."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

from models.processes import count


@dataclass(frozen=True)
class Gpu:
    """One GPU."""

    name: str
    memory: int
    """Bytes in all."""


@dataclass(frozen=True)
class Machine:
    """What `plan` compares its estimates with."""

    cores: int
    memory: int
    """Bytes of main memory that this process may use."""
    gpus: tuple[Gpu, ...]
    processes: int = 1
    """That a run has here, as the launcher says."""

    def __str__(self) -> str:
        text = f"{self.cores} cores, {self.memory / 2**30:.0f} GiB"
        if self.gpus:
            text += f", {len(self.gpus)} x {self.gpus[0].name} ({self.gpus[0].memory / 2**30:.0f} GiB)"
        return text


@cache
def this_machine() -> Machine:
    """The machine we are on, container limits included."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(cores=cores, memory=_memory(), gpus=gpus(), processes=count())


def why_unusable() -> str | None:
    """Why torch cannot use the GPUs that are here, in one line; None where it can. Imports torch."""
    import torch

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return None
    built = torch.version.cuda
    if built is None:
        return "there is a GPU, but torch is a build for CPUs: `make setup` anew, or hide it with CUDA_VISIBLE_DEVICES="
    words = " ".join(str(told[-1].message).split()) if told else "torch.cuda.is_available() is false"
    return (
        f"there is a GPU that torch {torch.__version__} (CUDA {built}) cannot use: "
        f"{words.partition(' (Triggered')[0][:300]}; a newer driver, or wheels for this one, would do; "
        "to run on the CPU set CUDA_VISIBLE_DEVICES="
    )


def peak_memory() -> int:
    """Bytes that this process took at most until now: of a GPU's memory where there is one (engine and
    trainer share torch's allocator), else of main memory."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _memory() -> int:
    memory = psutil.virtual_memory().total
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            memory = min(memory, int(Path(limit).read_text()))
        except (OSError, ValueError):
            continue  # no such cgroup, or "max"
    return memory


@cache
def gpus() -> tuple[Gpu, ...]:
    """CUDA devices that are visible to us; NVML first, `nvidia-smi` where the library cannot be loaded."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        return ()
    if not any(Path("/dev").glob("nvidia[0-9]*")) and not Path("/dev/dxg").exists():
        return ()
    found = _from_nvml() or _from_smi()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    wanted = [int(index) for index in visible.split(",") if index.strip().isdigit()]
    return tuple(found[index] for index in wanted if index < len(found)) if wanted else found


def _from_nvml() -> tuple[Gpu, ...]:
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return ()
    count = ctypes.c_uint()
    if nvml.nvmlInit_v2() != 0 or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return ()
    found = []
    for index in range(count.value):
        handle, memory = ctypes.c_void_p(), (ctypes.c_ulonglong * 3)()  # total, free, used
        name = ctypes.create_string_buffer(96)
        if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) != 0:
            continue
        nvml.nvmlDeviceGetName(handle, name, 96)
        if nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) == 0:
            found.append(Gpu(name.value.decode(errors="replace"), memory[0]))
    nvml.nvmlShutdown()
    return tuple(found)


def _from_smi() -> tuple[Gpu, ...]:
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return ()
    pairs = [line.rsplit(",", 1) for line in lines if "," in line]
    return tuple(Gpu(name.strip(), int(mebibytes) * 2**20) for name, mebibytes in pairs if mebibytes.strip().isdigit())
