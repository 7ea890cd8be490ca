"""An engine in a process of its own: the same completions, nothing of a launcher's, and an end that is told."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from models.engines.apart import ApartEngine
from models.engines.protocol import EngineError
from models.engines.start import Capacity, start_engine
from models.settings import Serving

ROOT = Path(__file__).parents[3]
ROOM = Capacity(max_model_len=192, max_num_seqs=8)
SERVING = Serving(engine="transformers", dtype="float32")
PROMPTS = [[65, 66, 67], [70, 71]]


def test_it_writes_what_one_in_this_process_writes_and_its_end_is_told(tiny_path, monkeypatch):
    # as under a launcher, of whose processes it is none
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = []
    engine = ApartEngine(str(tiny_path), SERVING, ROOM)
    monkeypatch.undo()
    sampling = tiny.sampling(12, temperature=0.0)
    made = engine.generate(PROMPTS, sampling, [1, 2], told.append)
    here = start_engine(str(tiny_path), SERVING, ROOM).generate(PROMPTS, sampling, [1, 2])
    assert made == here and sum(told) == len(PROMPTS)
    os.kill(engine._process.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match=r"ended by itself \(exit code -9"):
        engine.generate(PROMPTS, sampling, [1, 2])
    engine.close()


def test_what_cannot_be_loaded_is_told_here(tmp_path):
    with pytest.raises(EngineError, match=r"^transformers cannot serve '.*Unrecognized model"):
        ApartEngine(str(tmp_path), SERVING, ROOM)


@pytest.mark.slow
def test_it_ends_with_whoever_asked(tiny_path):
    engine = ApartEngine(str(tiny_path), SERVING, ROOM)
    process = engine._process
    engine.close()
    assert process.exitcode == 0


@pytest.mark.slow
def test_it_finds_its_own_packages_from_any_folder(tmp_path):
    """Also where the folder one works in has packages of the same names, as `python -m orchestra` is run there."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("raise RuntimeError('not this one')")
    script = (
        "import orchestra\nfrom models.engines.apart import ApartEngine\nfrom models.engines.start import Capacity\n"
        "from models.settings import Serving\n"
        "if __name__ == '__main__':\n"
        "    ApartEngine('./nowhere', Serving(engine='transformers', dtype='float32'), Capacity(8, max_num_seqs=1))\n"
    )
    command = [sys.executable, "-c", f"import sys; sys.path.append({str(ROOT)!r})\n{script}"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert "nowhere" in done.stderr and "EngineError" in done.stderr, done.stderr
    assert "ended by itself" not in done.stderr
