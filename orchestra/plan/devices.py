"""Hardware that a recipe is planned for: what its constants are, reached rather than peak."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestra.plan.machine import Gpu, Machine

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """Constants of a kind of hardware.

    Fields:
        train_flops, decode_flops: reached, not peak, per second.
        bandwidth: bytes per second that decoding reads weights with.
        decode_overhead: seconds per decoding step whatever the model's size; train_overhead: per micro-batch.
        concurrency: sequences decoded at once.
        cuda: it is a GPU.
        libraries: bytes that Python, torch and vLLM take themselves.
        start: seconds to import libraries and load models, once; stage: seconds per stage for loading and writing.
        processes: that share the work; the rest is one's part.
    """

    name: str
    memory: int
    train_flops: float
    decode_flops: float
    bandwidth: float
    decode_overhead: float
    train_overhead: float
    concurrency: int
    cuda: bool
    libraries: int
    start: float
    stage: float
    processes: int = 1


PEAKS: Mapping[str, tuple[float, float]] = {
    "H200": (990e12, 4.8e12),
    "H100": (990e12, 3.35e12),
    "H20": (148e12, 4.0e12),
    "B200": (2250e12, 8.0e12),
    "A100": (312e12, 2.0e12),
    "L40S": (362e12, 0.86e12),
    "4090": (165e12, 1.0e12),
    "3090": (71e12, 0.94e12),
}
"""Dense bfloat16 operations and bytes per second, from the makers' data sheets."""
OTHER_GPU = (150e12, 1.0e12)
ASSUMED_GPU = Gpu("H100 80GB", 80 * GIB)
"""What a GPU recipe is planned for on a machine without one."""
TRAIN_SHARE, DECODE_SHARE = 0.25, 0.30
"""Of a GPU's peak that LoRA training on a 4-bit base, and decoding in large batches, reach."""
CPU_CORE_FLOPS = 0.030e12
"""float32 multiply-adds x 2 per second and core in training (AVX-512)."""


def device_of(machine: Machine, scale: str) -> Device:
    """The hardware that the recipe is planned for: this machine's GPU, an assumed one for `gpu`, or its CPU."""
    if machine.gpus or scale == "gpu":
        gpu = machine.gpus[0] if machine.gpus else ASSUMED_GPU
        peak, bandwidth = next((value for name, value in PEAKS.items() if name in gpu.name), OTHER_GPU)
        return Device(
            name=gpu.name if machine.gpus else f"{gpu.name} (assumed)",
            memory=gpu.memory,
            train_flops=TRAIN_SHARE * peak,
            decode_flops=DECODE_SHARE * peak,
            bandwidth=0.6 * bandwidth,
            decode_overhead=0.008,
            train_overhead=0.15,
            concurrency=256,
            cuda=True,
            libraries=3 * GIB,
            start=90.0,
            stage=20.0,
            processes=machine.processes,
        )
    # processes share the one main memory, and have a GPU each
    cores = max(1, machine.cores // machine.processes_here)
    return Device(
        name=f"CPU, {machine.cores} cores",
        memory=machine.memory // machine.processes_here,
        train_flops=CPU_CORE_FLOPS * cores,
        decode_flops=2 * CPU_CORE_FLOPS * cores,
        bandwidth=10e9,
        decode_overhead=0.0135,
        train_overhead=0.05,
        concurrency=256,
        cuda=False,
        libraries=int(1.1 * GIB),
        start=10.0,
        stage=5.0,
        processes=machine.processes,
    )
