r"""Compare verifiers on labelled cases: accuracy, wrong answers paid, speed, hostile inputs; writes rewards.md here.

    make bench-rewards                          # everything, some minutes
    make bench-rewards ARGS='--only ours --rows 500'

Each verifier runs in a process of its own, one row at a time on one core, under an address-space limit; a row that is
not done after 10 seconds (3 if hostile) is counted as hung and the process replaced. Verifiers that are not installed
are left out and named. The labelled cases are read from ../shared/data beside the repository, or from --data.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import select
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# this file's folder comes first on the path of a script, and would be taken for the package of the same name
sys.path[:] = [str(ROOT), *(folder for folder in sys.path if Path(folder or ".").resolve() != ROOT / "benchmarks")]
COLLECTED = (
    "areal_tests", "hardverify_math", "hendrycks_tests", "lighteval_tests", "mario_tests", "math_verify_issues",
    "math_verify_tests", "nemo_skills_tests", "olympiadbench_scoring", "reward_fn_tests",
)  # fmt: skip
SETS = {"collected": COLLECTED, "real chains": ("qwen_real_cot",), "synthetic": ("synthetic",), "hostile": ("hostile",)}
HANG_SECONDS = 10.0
SLOW_SECONDS = 2.0
MEMORY_MB = 4_096

Grader = Callable[[str, str], bool]


def ours() -> Grader:
    from rewards.math.verifier import Verifier
    from rewards.verdict import Verdict

    verifier = Verifier()
    verifier.warm()
    return lambda completion, gold: verifier.verify(completion, gold) is Verdict.CORRECT


def ours_without_memory() -> Grader:
    from rewards.math.verifier import Verifier
    from rewards.verdict import Verdict

    verifier = Verifier(remember=0)
    verifier.warm()
    return lambda completion, gold: verifier.verify(completion, gold) is Verdict.CORRECT


def trl() -> Grader:
    from trl.rewards import accuracy_reward

    return lambda completion, gold: accuracy_reward([[{"content": completion}]], [gold])[0] == 1.0


def math_verify_boxed() -> Grader:
    r"""As verl and NeMo-RL call it: the gold in \boxed{}, plain expressions and LaTeX read from the completion."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, math_metric

    metric = math_metric(
        gold_extraction_target=(LatexExtractionConfig(),),
        pred_extraction_target=(ExprExtractionConfig(), LatexExtractionConfig()),
    )
    return lambda completion, gold: metric(["\\boxed{" + gold + "}"], [completion])[0] > 0.5


def math_verify_plain() -> Grader:
    from math_verify import parse, verify

    return lambda completion, gold: bool(verify(parse(gold), parse(completion)))


def _verl(name: str):
    """One of verl's graders, without the rest of verl."""
    import importlib

    for package in ("verl", "verl.utils", "verl.utils.reward_score"):
        module = types.ModuleType(package)
        module.__path__ = [str(Path(folder) / Path(*package.split("."))) for folder in sys.path if folder]
        sys.modules[package] = module
    return importlib.import_module(f"verl.utils.reward_score.{name}")


def verl_string() -> Grader:
    score = _verl("math_reward").compute_score
    return lambda completion, gold: score(completion, gold) == 1.0


def verl_dapo() -> Grader:
    score = _verl("math_dapo").compute_score
    return lambda completion, gold: bool(score(completion, gold, strict_box_verify=True)["acc"])


def verl_prime() -> Grader:
    score = _verl("prime_math").compute_score
    return lambda completion, gold: bool(score(completion, gold)[0])


GRADERS: dict[str, tuple[Callable[[], Grader], str, str | None]] = {
    "ours": (ours, "rewards.math.verifier", None),
    "ours, no memory": (ours_without_memory, "rewards.math.verifier, every pair decided anew", None),
    "TRL accuracy_reward": (trl, "bare golds", "trl"),
    "math-verify as verl, NeMo-RL": (math_verify_boxed, "gold in a box, math_metric", "math-verify"),
    "math-verify, defaults": (math_verify_plain, "parse both, verify", "math-verify"),
    "verl math_reward": (verl_string, "Hendrycks string normalisation", "verl"),
    "verl math_dapo": (verl_dapo, "DAPO, strict box", "verl"),
    "verl prime_math": (verl_prime, "PRIME: strings, then sympy", "verl"),
}


def serve(name: str) -> None:
    """A grader's process: rows in, one JSON answer each."""
    import resource

    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        grade = GRADERS[name][0]()
    except (ImportError, OSError) as error:
        out.write(json.dumps({"missing": f"{type(error).__name__}: {error}"}) + "\n")
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MB << 20, MEMORY_MB << 20))
    out.write(json.dumps({"ready": True}) + "\n")
    for line in sys.stdin:
        row = json.loads(line)
        start = time.perf_counter()
        try:
            verdict, raised = bool(grade(row["completion"], row["gold"])), None
        except Exception as error:  # noqa: BLE001 - what other verifiers raise is a result here
            verdict, raised = False, type(error).__name__
        seconds = time.perf_counter() - start
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        out.write(json.dumps({"correct": verdict, "raised": raised, "seconds": seconds, "memory": memory}) + "\n")


class Process:
    """A grader's process as the benchmark sees it."""

    def __init__(self, name: str):
        self.name, self.missing = name, None
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", self.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, cwd=ROOT, start_new_session=True, text=True, bufsize=1,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        )  # fmt: skip
        first = self.read(120.0) or {"missing": "did not start"}
        self.missing = first.get("missing")

    def read(self, seconds: float) -> dict | None:
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        line = self.process.stdout.readline() if ready else ""
        return json.loads(line) if line else None

    def grade(self, row: dict, seconds: float) -> dict:
        try:
            self.process.stdin.write(json.dumps({"completion": row["completion"], "gold": row["gold"]}) + "\n")
            answer = self.read(seconds)
        except BrokenPipeError:
            answer = None
        if answer is None:
            hung = self.process.poll() is None
            self.close()
            self.start()
            return {
                "correct": False,
                "raised": None,
                "seconds": seconds,
                "memory": 0.0,
                "hung": hung,
                "died": not hung,
            }
        return answer

    def close(self) -> None:
        # some verifiers start processes of their own, which outlive them
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def label(row: dict) -> bool | None:
    if row.get("policy") or row.get("group") == "right_nobox":
        return None
    return row["truth"] if "truth" in row else row.get("expected")


def load(data: Path, names: tuple[str, ...], limit: int | None) -> list[dict]:
    rows = []
    for name in names:
        text = (data / "reward_cases" / f"{name}.jsonl").read_text(encoding="utf-8")
        rows.extend({**json.loads(line), "file": name} for line in text.split("\n") if line)
    return rows if limit is None else rows[:: max(1, len(rows) // limit)]


def measure(name: str, sets: dict[str, list[dict]]) -> dict | str:
    """All numbers of one verifier, or why it is left out."""
    process = Process(name)
    if process.missing:
        return process.missing
    result: dict = {}
    for key, rows in sets.items():
        # a hostile input that is late is unsafe, however late
        seconds = SLOW_SECONDS + 1 if key == "hostile" else HANG_SECONDS
        answers = [process.grade(row, seconds) for row in rows]
        labelled = [(row, a) for row, a in zip(rows, answers, strict=True) if label(row) is not None]
        seconds = sorted(answer["seconds"] for answer in answers)
        result[key] = {
            "n": len(labelled),
            "accuracy": sum(a["correct"] == label(row) for row, a in labelled) / max(1, len(labelled)),
            "paid": sum(a["correct"] and not label(row) for row, a in labelled),
            "hacks_paid": sum(a["correct"] for row, a in labelled if row.get("group") == "hack"),
            "hardverify": [a["correct"] == label(row) for row, a in labelled if row["file"] == "hardverify_math"],
            "per_second": len(seconds) / max(1e-9, sum(seconds)),
            "p50": seconds[len(seconds) // 2] * 1e3,
            "p99": seconds[int(0.99 * len(seconds))] * 1e3,
            "safe": sum(not a.get("hung") and not a.get("died") and not a["raised"] and a["seconds"] <= SLOW_SECONDS
                        for a in answers),
            "rows": len(rows),
            "memory": max(answer["memory"] for answer in answers),
        }  # fmt: skip
        print(f"{name}: {key}: {result[key]['accuracy']:.3f}, {result[key]['per_second']:.0f}/s", flush=True)
    process.close()
    return result


def table(results: dict[str, dict | str]) -> str:
    lines = [
        "| verifier | collected | hardverify | real chains | synthetic | wrong paid | hacks paid | chains/s "
        "| synthetic/s | p50 ms | p99 ms | hostile safe |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, result in results.items():
        if isinstance(result, str):
            continue
        collected, real, synthetic, hostile = (result[key] for key in SETS)
        hard = collected["hardverify"]
        lines.append(
            f"| {name} | {collected['accuracy']:.3f} | {sum(hard) / max(1, len(hard)):.3f} | {real['accuracy']:.3f} "
            f"| {synthetic['accuracy']:.3f} | {collected['paid'] + real['paid'] + synthetic['paid']} "
            f"| {synthetic['hacks_paid']} | {real['per_second']:,.0f} | {synthetic['per_second']:,.0f} "
            f"| {synthetic['p50']:.3f} | {synthetic['p99']:.2f} | {hostile['safe']}/{hostile['rows']} |"
        )
    return "\n".join(lines)


def report(results: dict[str, dict | str], sets: dict[str, list[dict]], whole: bool) -> str:
    counts = {key: sum(label(row) is not None for row in rows) for key, rows in sets.items()}
    versions = ", ".join(
        f"{package} {importlib.metadata.version(package)}" for package in ("trl", "math-verify", "sympy")
    )
    missing = [f"- {name}: {why}" for name, why in results.items() if isinstance(why, str)]
    used = [f"- **{name}**: {GRADERS[name][1]}" for name, result in results.items() if not isinstance(result, str)]
    return "\n".join([
        "# Verifiers compared",
        "",
        "Written by `make bench-rewards`; one core each, one row at a time"
        + ("." if whole else ", **on a sample of the rows**."),
        f"Python {platform.python_version()}, {versions}.",
        "",
        table(results),
        "",
        f"Labelled cases: {counts['collected']} collected from the test suites and issues of public verifiers "
        f"(audited), {counts['real chains']} real chains of thought, {counts['synthetic']} restated gold answers in "
        f"right and wrong forms, {len(sets['hostile'])} hostile inputs. *Accuracy* is agreement with the label. *Wrong "
        "paid* "
        "counts wrong answers graded correct over all three, *hacks paid* those among them written to be "
        f"paid. *Hostile safe* counts inputs answered within {SLOW_SECONDS:.0f} s without an exception, a hang or a "
        "dead "
        "process. Times are of the synthetic set unless the column says otherwise.",
        "",
        *used,
        *(["", "Not installed:", *missing] if missing else []),
        "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--only", nargs="*", help=f"some of: {', '.join(GRADERS)}")
    parser.add_argument("--rows", type=int, help="at most about this many rows of each set")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "rewards.md")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        # a reader that has gone is the end
        with contextlib.suppress(BrokenPipeError):
            serve(arguments.serve)
        return
    if not (arguments.data / "reward_cases").is_dir():
        sys.exit(f"no labelled cases in {arguments.data}: give the folder that holds reward_cases/ with --data")
    sets = {key: load(arguments.data, names, arguments.rows) for key, names in SETS.items()}
    results = {name: measure(name, sets) for name in arguments.only or GRADERS}
    text = report(results, sets, arguments.rows is None)
    arguments.output.write_text(text, encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
