"""Two real processes that share work out, tell each other everything, write once, and end with one message."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from models.engines.protocol import Completion
from models.engines.shared import SharedEngine
from models.processes import PIECE, Processes
from sft.distill import CHUNK

ROOT = Path(__file__).parents[2]
STORE = """
import faulthandler, signal, sys, time
from pathlib import Path
faulthandler.dump_traceback_later(50)  # where it is, should it hang
signal.signal(signal.SIGINT, signal.default_int_handler)  # of a command in a shell's background it is ignored
sys.path[:0] = [{root!r}, {tests!r}]
from torch.distributed import TCPStore
from models.processes import Processes
rank, folder = int(sys.argv[1]), Path(sys.argv[2])
together = Processes(rank, 2, TCPStore("127.0.0.1", {port}, is_master=False))
"""
SHARED = """
import json
from types import SimpleNamespace
from test_processes import Echo, PIECE
from models.engines.shared import SharedEngine
from rewards.problems import Asked, Problem
from sft.distill import sample_traces
from sft.settings import DistillSettings
told = {"gathered": together.gather(f"from {rank}")}
told["large"] = [len(part) for part in together.gather(b"x" * (2 * PIECE + 1 + rank))]
told["shared"] = [together.shared(n, lambda own: [(rank, i) for i in own]) for n in (0, 1, 5)]
with open(folder / "once", "a") as file:
    told["once"] = together.once(lambda: file.write("written\\n") and rank)
engine, seen = Echo(), []
shared = SharedEngine(engine, together)
groups = shared.generate([(i,) for i in range(5)], SimpleNamespace(n=2), [10 * i for i in range(5)], seen.append)
told["tokens"], told["asked"], told["seen"] = [[c.token_ids for c in g] for g in groups], engine.asked, seen
# a distill stage of 400 problems that is ended in the second chunk of 2 x 128, then run again
problems = [Problem(f"p{i}", f"{i}?", str(i)) for i in range(400)]
asked = Asked(tuple(problems), tuple(p.question for p in problems), tuple((i,) for i in range(400)))
settings = DistillSettings(teacher="embedded/teacher", samples=2)
def sample(own):
    done = []
    sample_traces(SharedEngine(own, together), asked, settings, folder, seeds=list(range(400)), progress=done.append,
                  opening="", processes=together)
    return done
try:
    sample(Echo(calls=1))
except RuntimeError:
    told["kept"] = together.once(lambda: len((folder / "samples.jsonl").read_text().splitlines()))
if rank == 0:
    with open(folder / "samples.jsonl", "a") as file:
        file.write('{"id": "p300", "compl')
together.wait()
told["done"] = sample(Echo())
together.wait()
(folder / f"told-{rank}.json").write_text(json.dumps(told))
"""


class Echo:
    """An engine that answers every prompt with its tokens and its seed."""

    kind, dtype, serves_adapters = "echo", None, False

    def __init__(self, calls=None):
        self.asked, self.calls = [], calls

    def generate(self, prompts, sampling, seeds=None, progress=None):
        if self.calls is not None and len(self.asked) >= self.calls:
            raise RuntimeError("ended")
        self.asked.append([list(prompt) for prompt in prompts])
        for _ in prompts if progress else ():
            progress(1)
        return [
            [Completion([*prompt, seed + k], f"{seed + k}", "stop") for k in range(sampling.n)]
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]


@contextlib.contextmanager
def both(script, folder):
    """Two processes with a store between them, as a launcher has it."""
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    text = STORE.format(root=str(ROOT), tests=str(Path(__file__).parent), port=store.port) + script
    (folder / "script.py").write_text(text)
    started = [
        subprocess.Popen(
            [sys.executable, str(folder / "script.py"), str(rank), str(folder)],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for rank in (0, 1)
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What two processes saw of each other, and the folder they wrote in."""
    folder = tmp_path_factory.mktemp("two")
    with both(SHARED, folder) as started:
        for process in started:
            _, error = process.communicate(timeout=100)
            assert process.returncode == 0, error[-3000:]
    return [json.loads((folder / f"told-{rank}.json").read_text()) for rank in (0, 1)], folder


def test_everybody_is_told_everything(told):
    both, _ = told
    for one in both:
        assert one["gathered"] == ["from 0", "from 1"]
        # the store takes no value of more than 8 MiB
        assert one["large"] == [2 * PIECE + 1, 2 * PIECE + 2]
        # piece i is process i % 2's, and comes i-th
        assert one["shared"] == [[], [[0, 0]], [[0, 0], [1, 1], [0, 2], [1, 3], [0, 4]]]


def test_once_is_done_by_the_first(told):
    both, folder = told
    assert (folder / "once").read_text() == "written\n" and [one["once"] for one in both] == [0, 0]


def test_an_engine_is_asked_as_one(told):
    """Completions are those of one engine asked for all five, each prompt under its own seed."""
    both, _ = told
    whole = [[[i, 10 * i], [i, 10 * i + 1]] for i in range(5)]
    assert [one["tokens"] for one in both] == [whole, whole]
    assert [one["asked"] for one in both] == [[[[0], [2], [4]]], [[[1], [3]]]]
    assert all(sum(one["seen"]) == 5 for one in both)


def test_a_teachers_samples_have_one_writer_and_survive_a_kill(told):
    """As many lines as problems, in the order of one process; what was written before is not asked again."""
    both, folder = told
    assert [one["kept"] for one in both] == [2 * CHUNK] * 2
    assert [one["done"] for one in both] == [[256, 144]] * 2
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"p{i}" for i in range(400)]
    assert [line["completions"][1]["text"] for line in lines] == [str(i + 1) for i in range(400)]


def test_one_process_asks_nobody():
    alone = Processes()
    assert alone.first and alone.gather(1) == [1] and alone.once(lambda: 2) == 2
    assert alone.shared(3, lambda own: [i * i for i in own]) == [0, 1, 4]
    assert SharedEngine(Echo(), alone).generate([(7,)], type("S", (), {"n": 1}), [3])[0][0].token_ids == [7, 3]


def test_a_wait_ends_at_a_signal(tmp_path):
    """Not only when the other one comes: a collective would hold the process until its timeout."""
    script = """
(folder / f"here-{rank}").touch()
try:
    together.once(lambda: time.sleep(100))
except KeyboardInterrupt:
    sys.exit(7)
"""
    with both(script, tmp_path) as (_, waiting):
        deadline = time.monotonic() + 60
        while not (tmp_path / "here-1").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        waiting.send_signal(signal.SIGINT)
        try:
            _, error = waiting.communicate(timeout=60)
        except subprocess.TimeoutExpired as hung:
            pytest.fail(f"it hangs:\n{(hung.stderr or b'').decode()}")
        assert waiting.returncode == 7, error
