"""One process takes one GPU, whatever it sees; a launcher's processes keep what they were given."""

import pytest

from orchestra.run import processes


@pytest.fixture
def visible(monkeypatch):
    def see(devices, world=None):
        for name, value in (("CUDA_VISIBLE_DEVICES", devices), ("WORLD_SIZE", world)):
            monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)

    return see


def devices():
    import os

    return os.environ.get("CUDA_VISIBLE_DEVICES")


@pytest.mark.parametrize(("given", "count", "first"), [(None, 2, "0"), ("2,3", 2, "2"), ("GPU-ab,GPU-cd", 2, "GPU-ab")])
def test_the_first_of_several(visible, given, count, first):
    visible(given)
    told = processes.take_one_gpu(count)
    assert devices() == first and f"one GPU of {count}" in told and "torchrun --nproc-per-node gpu" in told


@pytest.mark.parametrize(
    ("given", "count", "world"), [(None, 0, None), (None, 1, None), ("3", 1, None), ("GPU-ab", 8, None), (None, 8, "8")]
)
def test_nothing_to_choose(visible, given, count, world):
    visible(given, world)
    assert processes.take_one_gpu(count) is None and devices() == given
