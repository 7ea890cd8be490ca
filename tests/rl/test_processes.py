"""Two CPU processes (gloo) take the same GRPO steps as one with twice the batch. Each has an engine of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
SCRIPT = """
import os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
from accelerate import PartialState
PartialState(cpu=True)
from models.adapters import save_adapter
from models.engines.start import Capacity, start_engine
from models.settings import Serving
from tiny_grpo import Stage, even_unless_easy
out = Path(sys.argv[1])
engine = start_engine({checkpoint!r}, Serving(engine="vllm"), Capacity(max_model_len=128))
# float32 sampling may flip a token where rounding differs; few steps keep that unlikely
stage = Stage(Path({checkpoint!r}), engine, reward=even_unless_easy, easy=2, max_resamples=1,
              settings={{"steps": 2, "prompts_per_step": 4, "save_steps": 100, "micro_batch_size": 4}})
rank = os.environ.get("RANK", "0")
trained = stage.run(out / rank)
save_adapter(trained.model, out / rank / "adapter")
PartialState().wait_for_everyone()
engine.close()
"""


def run(script: Path, out: Path, processes: int) -> None:
    launcher = [sys.executable, str(script)]
    if processes > 1:
        launcher = [
            *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)),
            *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", str(script)),
        ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([*launcher, str(out)], env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_are_one_with_twice_the_batch(tiny_path, tmp_path):
    pytest.importorskip("vllm", reason="vLLM is not installed here")
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parents[1]), checkpoint=str(tiny_path)))
    for processes in (1, 2):
        run(script, tmp_path / str(processes), processes)
    one = load_file(tmp_path / "1" / "0" / "adapter" / "adapter_model.safetensors")
    for rank in ("0", "1"):
        two = load_file(tmp_path / "2" / rank / "adapter" / "adapter_model.safetensors")
        # two steps at a learning rate of 2e-2 move weights by up to 4e-2
        difference = max((one[name] - two[name]).abs().max().item() for name in one)
        assert difference < 1e-4, difference
