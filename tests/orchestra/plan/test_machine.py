"""What a stage took of the machine: its own peak, not that of the stages before."""

import sys
from types import SimpleNamespace

import psutil
import pytest

from orchestra.plan import machine
from orchestra.plan.machine import PeakMemory

MIB = 2**20


def taken(megabytes):
    """Memory that is really there: every page written to."""
    block = bytearray(megabytes * MIB)
    block[::4096] = b"x" * len(block[::4096])
    return block


@pytest.mark.parametrize("kernel_forgets", [True, False])
def test_the_peak_is_of_what_happens_inside(monkeypatch, kernel_forgets):
    if not kernel_forgets:
        monkeypatch.setattr(machine, "_forget_peak", lambda: False)
    monkeypatch.setattr(machine, "_gpu_used", lambda: 0)
    before = taken(400)
    before = None  # gone before the second stage begins  # noqa: F841
    held = psutil.Process().memory_info().rss
    with PeakMemory() as peak:
        inside = taken(100)
        for _ in range(3):
            peak._end.wait(0.1)
        del inside
    assert 80 * MIB < peak.bytes - held < 200 * MIB


def test_an_exception_ends_the_watch():
    with pytest.raises(KeyError), PeakMemory() as peak:
        raise KeyError
    assert not peak._watcher.is_alive() and peak.bytes > 0


def test_of_a_gpu_all_that_is_taken_counts(monkeypatch):
    """A teacher's engine takes its memory past torch's allocator: what the device has in use is asked for."""
    used = iter([3 << 30, 9 << 30])
    monkeypatch.setattr(machine, "_gpu_used", lambda: next(used, 2 << 30))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: True)))
    with PeakMemory() as peak:
        for _ in range(4):
            peak._end.wait(0.1)
    assert peak.bytes == 9 << 30


class Nvml:
    """Two devices with 8 and 16 GiB, of which 1 and 2 are in use."""

    def nvmlDeviceGetCount_v2(self, count):
        count._obj.value = 2
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index, handle):
        handle._obj.value = index + 1
        return 0 if index < 2 else 1

    def nvmlDeviceGetName(self, handle, name, size):
        name.value = f"GPU {handle.value}".encode()

    def nvmlDeviceGetMemoryInfo(self, handle, memory):
        memory._obj[0], memory._obj[1], memory._obj[2] = (handle.value * part << 30 for part in (8, 7, 1))
        return 0


@pytest.mark.parametrize(("visible", "rank", "gib"), [("", "0", 1), ("", "1", 2), ("1", "0", 2), ("1,0", "1", 1)])
def test_the_device_is_this_processs(monkeypatch, visible, rank, gib):
    monkeypatch.setattr(machine, "_nvml", Nvml)
    monkeypatch.setattr(machine, "gpus", machine._from_nvml)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert [(gpu.name, gpu.memory >> 30) for gpu in machine._from_nvml()] == [("GPU 1", 8), ("GPU 2", 16)]
    assert machine._gpu_used() == gib << 30
