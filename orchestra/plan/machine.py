"""What this machine is: cores, memory, GPUs. Without torch, so that `check` and `plan` answer at once."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
import threading
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

import psutil

from models.processes import count, here


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
    """That a run has, as the launcher says."""
    processes_here: int = 1
    """Those of them that share this machine's memory and cores."""

    def __str__(self) -> str:
        text = f"{self.cores} cores, {self.memory / 2**30:.0f} GiB"
        if self.gpus:
            text += f", {len(self.gpus)} x {self.gpus[0].name} ({self.gpus[0].memory / 2**30:.0f} GiB)"
        return text


@cache
def this_machine() -> Machine:
    """The machine we are on, container limits included."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(cores=cores, memory=_memory(), gpus=gpus(), processes=count(), processes_here=here())


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


class PeakMemory:
    """The most memory that was taken inside.

    Of a GPU all that is taken on it is counted, by whatever allocator: a teacher's engine that can be put to sleep does
    not take its memory from torch's. Of main memory it is what this process holds, engines included. Linux keeps that
    peak and can forget an older one; what cannot be asked for like this is looked at ten times a second.
    """

    def __init__(self) -> None:
        self._main = self._gpu = 0
        self._end = threading.Event()

    def __enter__(self) -> Self:
        self._forgotten = _forget_peak()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._watcher.join()
        self._look()
        if self._forgotten:
            self._main = max(self._main, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)

    @property
    def bytes(self) -> int:
        """Of the process's GPU where torch computes on one, else of main memory."""
        torch = sys.modules.get("torch")
        return self._gpu if torch is not None and torch.cuda.is_available() else self._main

    def _watch(self) -> None:
        while not self._end.wait(0.1):
            self._look()

    def _look(self) -> None:
        self._main = max(self._main, psutil.Process().memory_info().rss)
        self._gpu = max(self._gpu, _gpu_used())


def _forget_peak() -> bool:
    """Let the process's peak begin anew (Linux: proc_pid_clear_refs(5)); whether that could be done."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


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
    wanted = _visible()
    return tuple(found[index] for index in wanted if index < len(found)) if wanted else found


def _visible() -> list[int]:
    """The devices that we are told to use, by their numbers on the machine; none told is all."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [int(index) for index in told.split(",") if index.strip().isdigit()]


@cache
def _nvml() -> ctypes.CDLL | None:
    """NVIDIA's library, which knows the devices without CUDA."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    return library if library.nvmlInit_v2() == 0 else None


def _nvml_memory(index: int) -> tuple[str, int, int] | None:
    """A device's name, and its bytes in all and in use."""
    handle, memory = ctypes.c_void_p(), (ctypes.c_ulonglong * 3)()  # total, free, used
    name = ctypes.create_string_buffer(96)
    if _nvml().nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) != 0:
        return None
    _nvml().nvmlDeviceGetName(handle, name, 96)
    if _nvml().nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) != 0:
        return None
    return name.value.decode(errors="replace"), memory[0], memory[2]


def _from_nvml() -> tuple[Gpu, ...]:
    count = ctypes.c_uint()
    if _nvml() is None or _nvml().nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return ()
    found = [_nvml_memory(index) for index in range(count.value)]
    return tuple(Gpu(name, total) for name, total, _ in filter(None, found))


def _gpu_used() -> int:
    """Bytes in use on the GPU of this process, by whomever; 0 where there is none."""
    if not gpus() or _nvml() is None:
        return 0
    own = int(os.environ.get("LOCAL_RANK", "0"))
    told = _visible()
    found = _nvml_memory(told[own % len(told)] if told else own)
    return found[2] if found is not None else 0


def _from_smi() -> tuple[Gpu, ...]:
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return ()
    pairs = [line.rsplit(",", 1) for line in lines if "," in line]
    return tuple(Gpu(name.strip(), int(mebibytes) * 2**20) for name, mebibytes in pairs if mebibytes.strip().isdigit())
