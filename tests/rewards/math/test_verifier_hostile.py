"""Nothing a model writes hangs the verifier, raises from it, fills memory, or runs."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from rewards.math.symbolic_pool import PoolSettings, SymbolicPool
from rewards.math.verifier import Verifier
from rewards.verdict import Verdict

ROOT = Path(__file__).resolve().parents[3]
CASES = ROOT.parent / "shared" / "data" / "reward_cases" / "hostile.jsonl"
SECONDS = 2.0
MEGABYTES = 512

HOSTILE = {
    "tower": r"9^{9^{9^9}}",
    "towers cancel": r"\frac{10^{10^{10^{10}}}}{10^{10^{10^{10}}}} + 4",
    "real tower": r"e^{e^{e^{e^{10}}}}",
    "tiny": r"10^{-999999999999}",
    "factorial": "100000000!",
    "nested factorial": "((9!)!)!",
    "many factorials": "2400!" + r" \cdot 2400!" * 150,
    "binomial": r"\binom{10^{9}}{5 \cdot 10^{8}}",
    "sum": r"\sum_{k=1}^{10^{9}} \frac{1}{k^2}",
    "product": r"\prod_{k=1}^{10^{7}} k",
    "integral": r"\int_0^{\infty} \frac{\sin(x^3) e^{-x^2}}{1+x^x} dx",
    "limit": r"\lim_{x\to 0} \frac{\sin(\tan x) - \tan(\sin x)}{\arcsin(\arctan x) - \arctan(\arcsin x)}",
    "roots": r"\sqrt{" * 1000 + "5" + "}" * 1000,
    "braces": "{" * 20_000 + "4" + "}" * 20_000,
    "parentheses": "(" * 3000 + "4" + ")" * 3000,
    "fractions": r"\frac{1}{" * 500 + "2" + "}" * 500,
    "functions": r"\sin " * 1000 + "x",
    "signs": "-" * 3000 + "4",
    "powers": "x" + "^2" * 900,
    "digits": "1" * 100_000,
    "decimal": "0." + "3" * 100_000,
    "terms": "x+" * 1900 + "x",
    "items": "1," * 10_000 + "1",
    "surds": ",".join(rf"\sqrt{{{n}}}+\sqrt{{{n + 1}}}" for n in range(2, 90)),
    "boxes": r"\boxed{7} " * 3000,
    "expansion": r"(x+y+z+w)^{60}(x-y)^{60}",
    "trigonometry": "+".join(rf"\sin({k}x)\cos({k + 1}y)\tan(x^{{{k}}})" for k in range(1, 40)),
    "matrix": r"\begin{pmatrix}" + r" \\ ".join([" & ".join(["x"] * 30)] * 30) + r"\end{pmatrix}",
    "overflow": "1e999999999",
    "python": "().__class__.__base__.__subclasses__()",
    "nul": "\x00\u202e\ufeff" * 2000,
    "surrogate": "\ud800",
}


@pytest.fixture(scope="module")
def verifier():
    verifier = Verifier()
    verifier.warm()  # the start of the workers is no property of any input
    yield verifier
    verifier.close()


def memory_of(*processes):
    """Resident megabytes of processes and all they started."""
    everyone = {p for process in processes for p in (process, *process.children(recursive=True))}
    return sum(p.memory_info().rss for p in everyone if p.is_running()) / 2**20


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers_are_wrong_in_time(verifier, name):
    start = time.perf_counter()
    verdict = verifier.verify(f"The answer is $\\boxed{{{HOSTILE[name]}}}$.", "5")
    assert time.perf_counter() - start < SECONDS
    assert verdict is Verdict.WRONG
    assert verifier.counts.errors == 0


@pytest.mark.parametrize("name", ["tower", "digits", "roots", "surds", "items", "expansion", "sum", "python"])
def test_hostile_golds_are_no_danger_either(verifier, name):
    start = time.perf_counter()
    assert verifier.verify(r"\boxed{4}", HOSTILE[name]) is Verdict.WRONG
    assert verifier.verify(rf"\boxed{{{HOSTILE[name]}}}", HOSTILE[name]) is Verdict.CORRECT
    assert time.perf_counter() - start < SECONDS


@pytest.mark.skipif(not CASES.is_file(), reason="the hostile cases (../shared/data) are not here")
def test_the_collected_hostile_cases(verifier):
    for line in filter(None, CASES.read_text(encoding="utf-8").split("\n")):
        row = json.loads(line)
        start = time.perf_counter()
        verdict = verifier.verify(row["completion"], row["gold"])
        assert time.perf_counter() - start < SECONDS, row["what"]
        if row["expected"] is not None:
            assert (verdict is Verdict.CORRECT) == row["expected"], row["what"]
    assert verifier.counts.errors == 0


def test_memory_stays_bounded_over_all_of_them():
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_verifier_hostile import HOSTILE, memory_of
from rewards.math.verifier import Verifier
import psutil, threading
verifier, most, done = Verifier(), [0.0], threading.Event()
def watch():
    while not done.wait(0.05):
        try:
            most[0] = max(most[0], memory_of(*psutil.Process().children()))
        except psutil.NoSuchProcess:
            pass
watcher = threading.Thread(target=watch); watcher.start()
verifier.verify_batch(["\\\\boxed{{" + text + "}}" for text in HOSTILE.values()], ["5"] * len(HOSTILE))
done.set(); watcher.join()
# ru_maxrss would be that of the process that forked this one
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(most[0], int(peak.split()[1]) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    workers, parent = map(float, done.stdout.split())
    assert 0 < workers < MEGABYTES
    assert parent < MEGABYTES


INJECTIONS = [
    '__import__("pathlib").Path("PROBE").write_text("x")',
    "__import__('os').system('touch PROBE')",
    r"\text{__import__('os').system('touch PROBE')}",
    r"\operatorname{__import__}('os').system('touch PROBE')",
    "exec(\"open('PROBE','w')\")",
    r"\sum_{k=1}^{open('PROBE','w')} k",
    r"\int \mathrm{open('PROBE','w')} dx",
    "Symbol('x').__class__.__init__.__globals__['__builtins__']['open']('PROBE','w')",
]


@pytest.mark.parametrize("text", INJECTIONS)
def test_text_is_never_run(verifier, tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    probe = tmp_path / "PROBE"
    text = text.replace("PROBE", str(probe))
    for completion in (rf"\boxed{{{text}}}", f"The answer is {text}", text):
        verifier.verify(completion, "5")
        verifier.verify("5", text)
    # the workers themselves, past every cap
    verifier.pool.compare([("5", text), (text, "5"), (text, text)])
    assert not probe.exists()


def test_a_killed_worker_costs_one_verdict_and_is_counted():
    verifier = Verifier(PoolSettings(slots=2, seconds=0.4))
    easy = [rf"\boxed{{\sum_{{k=1}}^{{{n}}} k}}" for n in range(2, 8)]
    golds = [str(n * (n + 1) // 2) for n in range(2, 8)]
    completions = [easy[0], rf"\boxed{{{HOSTILE['integral']}}}", *easy[1:]]
    judgements = verifier.judge_batch(completions, [golds[0], "5", *golds[1:]])
    assert [judgement.verdict for judgement in judgements] == [Verdict.CORRECT, Verdict.WRONG, *[Verdict.CORRECT] * 5]
    assert [judgement.timed_out for judgement in judgements] == [False, True, *[False] * 5]
    assert verifier.counts.timeouts == 1 and verifier.pool.killed == 1
    verifier.close()


def test_workers_killed_from_outside_are_replaced():
    verifier = Verifier(PoolSettings(slots=1))
    assert verifier.verify(r"\boxed{\sum_{k=1}^{4} k}", "10") is Verdict.CORRECT
    keeper = psutil.Process(verifier.pool.pid)
    for process in (*keeper.children(recursive=True), keeper):
        process.kill()
    assert verifier.verify(r"\boxed{\sum_{k=1}^{5} k}", "15") is Verdict.CORRECT
    verifier.close()


def test_off_the_main_thread(verifier):
    verdicts = {}

    def work(number):
        completions = [rf"\boxed{{\sum_{{k=1}}^{{{number}}} k}}", r"\boxed{9^{9^{9^9}}}"]
        verdicts[number] = verifier.verify_batch(completions, [str(number * (number + 1) // 2), "5"])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert verdicts == {number: [Verdict.CORRECT, Verdict.WRONG] for number in range(3, 9)}


def _in_a_child(verifier, queue):
    queue.put((verifier.verify(r"\boxed{\sum_{k=1}^{6} k}", "21").value, verifier.pool.pid))
    verifier.close()


@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_after_a_fork_the_child_has_workers_of_its_own(verifier):
    assert verifier.verify(r"\boxed{\sum_{k=1}^{5} k}", "15") is Verdict.CORRECT
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_a_child, args=(verifier, queue))
    with verifier.pool._lock:  # another thread may be asking at the moment of the fork
        child.start()
    verdict, pid = queue.get(timeout=30)
    child.join(timeout=30)
    assert child.exitcode == 0 and verdict == "correct" and pid != verifier.pool.pid
    assert verifier.verify(r"\boxed{\sum_{k=1}^{7} k}", "28") is Verdict.CORRECT  # ours still work


def test_a_script_without_a_main_guard(tmp_path):
    """Workers start no copy of the script, import no torch, and end with it."""
    script = tmp_path / "script.py"
    script.write_text(
        "import psutil\n"
        "print('started')\n"
        "import orchestra\nfrom rewards.math.verifier import default_verifier, verify\n"
        "assert verify(r'\\boxed{\\sum_{k=1}^{4} k}', '10') == 'correct'\n"
        "family = psutil.Process(default_verifier().pool.pid)\n"
        "family = [family, *family.children(recursive=True)]\n"
        "assert not any('torch' in m.path for p in family for m in p.memory_maps())\n"
        "print(*[p.pid for p in family])\n"
    )
    # vLLM, where another test has imported it, preloads torch's OpenMP into every child
    clean = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, cwd=tmp_path, env=clean
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "started"
    deadline = time.monotonic() + 5
    while any(psutil.pid_exists(int(pid)) for pid in second.split()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(psutil.pid_exists(int(pid)) for pid in second.split())


def test_workers_end_when_their_process_is_killed():
    code = (
        "import time\n"
        "import orchestra\nfrom rewards.math.verifier import default_verifier\n"
        "default_verifier().warm()\n"
        "print(default_verifier().pool.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        keeper = psutil.Process(int(process.stdout.readline()))
        family = [keeper, *keeper.children(recursive=True)]
        process.kill()
    gone, alive = psutil.wait_procs(family, timeout=5)
    assert len(gone) == 3 and not alive


def test_under_accelerate_launch(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import threading, time\n"
        "from accelerate import PartialState\n"
        "import orchestra\nfrom rewards.math.verifier import verify_batch\n"
        "state = PartialState(cpu=True)\n"
        "found = []\n"
        "def work():\n"
        "    answers = [r'\\boxed{\\sum_{k=1}^{4} k}', r'\\boxed{9^{9^{9^9}}}', r'\\boxed{x}']\n"
        "    found.extend(verify_batch(answers, ['10', '5', 'y']))\n"
        "thread = threading.Thread(target=work); thread.start(); thread.join(20)\n"
        "print(state.process_index, *[str(verdict) for verdict in found])\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1",
         "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", str(script)],
        capture_output=True, text=True, timeout=120, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["0", "correct", "wrong", "wrong"]


def test_a_pool_that_cannot_start_says_so(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="did not start"):
        SymbolicPool().compare([("1", "2")])


def test_workers_are_found_wherever_the_packages_lie(tmp_path):
    """As in a wheel: the packages below another folder, found by a hook that a child process does not have; the user's
    own files of the same names in the working directory and on PYTHONPATH."""
    inner, hostile = tmp_path / "site" / "inner", tmp_path / "hostile"
    for package in ("rewards", "settings"):
        shutil.copytree(ROOT / package, inner / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("rewards", "models", "settings", "evals", "symbolic_worker", "rl/__init__"):
        (hostile / name).parent.mkdir(parents=True, exist_ok=True)
        (hostile / f"{name}.py").write_text(f"raise SystemExit('the user has {name}')\n")
    script = hostile / "script.py"
    script.write_text(
        "import importlib.machinery, sys\n"
        "class Hook:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if path is None and name in ('rewards', 'settings'):\n"
        f"            return importlib.machinery.PathFinder.find_spec(name, [{str(inner)!r}])\n"
        "sys.meta_path.insert(0, Hook())\n"
        "from rewards.math import verifier\n"
        f"assert verifier.__file__.startswith({str(inner)!r})\n"
        "print(verifier.verify(r'\\boxed{\\sum_{k=1}^{4} k}', '10'), verifier.default_verifier().counts.symbolic)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, cwd=hostile,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(hostile), "."])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["correct", "1"]
