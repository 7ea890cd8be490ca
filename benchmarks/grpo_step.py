"""One GRPO step, ours against stock TRL, alternating step by step in one run: `make bench-grpo`.

    python -m benchmarks.grpo_step [--cases student 25m] [--steps 8] [--out benchmarks]

Both train the same model, LoRA, prompts, group size, KL penalty and lengths, each in a process of its own that waits
for its turn, so nothing runs beside a step. Stock TRL is first tried in several settings (arithmetic, base) and runs in
the fastest. Ratios are per pair of steps; their median and spread are reported.

student  embedded/student on the generator's problems with the recipe's rewards; completions end where it ends them.
25m      a random 25M-parameter Qwen2. 32 of its 4,096 tokens end a completion, and random weights sample nearly
         uniformly, so lengths are geometric with mean 128, cut off at 256. The reward is the parity of the token ids.
3b       Qwen2.5-3B's shape with random weights (GPU): lengths geometric with mean 256, cut off at 1,024.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.grpo_cases import CASES, KEYS, Case, Job, Setting, our_settings, stock_settings
from benchmarks.grpo_task import model_name


@dataclass(frozen=True)
class Step:
    """Seconds by part, completion tokens sampled, completions and those with a non-zero advantage."""

    seconds: dict[str, float]
    tokens: int
    samples: int
    useful: int


class WorkerEnded(RuntimeError):
    """A worker process is gone; the message says what it said last."""


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "without a word"


class Trainer:
    """A worker process, from this side.

    Attributes:
        setup: seconds from the start of the process to its first step.
        peak: bytes of memory, at most, up to the last step.
    """

    def __init__(self, job: Job, setting: Setting, folder: Path) -> None:
        start = time.perf_counter()
        read, write = os.pipe()
        self._log = open(folder / f"{setting.trainer}-{job.name}.log", "ab")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.grpo_worker", type(job).__name__, json.dumps(asdict(job)),
             json.dumps(asdict(setting)), str(folder), str(write)],
            stdin=subprocess.PIPE, stdout=self._log, stderr=self._log, pass_fds=[write],
        )  # fmt: skip
        os.close(write)
        self._replies = os.fdopen(read)
        self.peak = 0
        self._line()
        self.setup = time.perf_counter() - start

    def _line(self) -> str:
        line = self._replies.readline()
        if not line:
            raise WorkerEnded(f"ended early: {_last_line(Path(self._log.name))}")
        return line

    def step(self) -> Step:
        with suppress(BrokenPipeError):  # a worker that is gone is said to be so by the line that does not come
            self._process.stdin.write(b"go\n")
            self._process.stdin.flush()
        reply = json.loads(self._line())
        self.peak = reply.pop("peak")
        self._line()
        return Step(**reply)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._replies.close()
        self._log.close()


def timed(job: Job, settings: Sequence[Setting], folder: Path, steps: int = 2) -> dict[Setting, float]:
    """Seconds of the shortest step after one warm-up, of every setting that works."""
    seconds = {}
    for setting in settings:
        try:
            trainer = Trainer(job, setting, folder)
            trainer.step()
            seconds[setting] = min(trainer.step().seconds["step"] for _ in range(steps))
            trainer.close()
        except WorkerEnded as error:  # too little memory for this setting, say
            print(f"  {setting.trainer}: {setting}: {error}", flush=True)
            continue
        print(f"  {setting.trainer}: {setting}: {seconds[setting]:.2f} s", flush=True)
    if not seconds:
        raise WorkerEnded(f"no setting works for {settings[0].trainer}")
    return seconds


def alternate(sides: Mapping[str, Trainer], steps: int) -> dict[str, list[Step]]:
    """Steps taken in turn; who goes first alternates, too."""
    taken: dict[str, list[Step]] = {name: [] for name in sides}
    for index in range(steps):
        for name, trainer in sides.items() if index % 2 else reversed(sides.items()):
            taken[name].append(trainer.step())
        print(f"  pair {index + 1}/{steps}", flush=True)
    for trainer in sides.values():
        trainer.close()
    return taken


def run_case(case: Case, steps: int, folder: Path, cuda: bool) -> dict[str, object]:
    """Pick both sides' settings, then alternate; the first pair warms up."""
    model_name(case, folder)
    tried = {
        "ours": timed(case, our_settings(case, cuda), folder),
        "stock": timed(case, stock_settings(case, cuda), folder),
    }
    fastest = {name: min(seconds, key=seconds.__getitem__) for name, seconds in tried.items()}
    sides = {name: Trainer(case, setting, folder) for name, setting in fastest.items()}
    taken = {name: values[1:] for name, values in alternate(sides, steps + 1).items()}
    return {
        "case": asdict(case),
        "settings": {name: str(setting) for name, setting in fastest.items()},
        "tried": {name: {str(one): value for one, value in seconds.items()} for name, seconds in tried.items()},
        "steps": {name: [asdict(step) for step in values] for name, values in taken.items()},
        "peak_gib": {name: trainer.peak / 2**30 for name, trainer in sides.items()},
        "ratios": ratios(taken["ours"], taken["stock"]),
    }


def ratios(ours: list[Step], stock: list[Step]) -> dict[str, list[float]]:
    """Median, lowest and highest of ours over stock per pair of steps: above 1 ours is faster."""

    def spread(values: list[float]) -> list[float]:
        return [statistics.median(values), min(values), max(values)]

    pairs = list(zip(ours, stock, strict=True))
    return {
        "step time": spread([b.seconds["step"] / a.seconds["step"] for a, b in pairs]),
        "rollout tokens/s": spread(
            [(a.tokens / a.seconds["rollout"]) / (b.tokens / b.seconds["rollout"]) for a, b in pairs]
        ),
        "tokens/s over the step": spread(
            [(a.tokens / a.seconds["step"]) / (b.tokens / b.seconds["step"]) for a, b in pairs]
        ),
        "useful samples/s": spread(
            [(a.useful / a.seconds["step"]) / (max(b.useful, 1) / b.seconds["step"]) for a, b in pairs]
        ),
    }


def report(results: list[dict]) -> str:
    """Markdown of all cases."""
    lines = [
        "# A GRPO step: ours against stock TRL 1.16",
        "",
        "Made by `make bench-grpo`; see benchmarks/grpo_step.py.",
    ]
    for result in results:
        case, steps = result["case"], result["steps"]
        lines += ["", f"## {case['name']}: {case['prompts_per_step']} prompts x {case['group_size']}, "
                  f"up to {case['max_completion_tokens']} tokens"]  # fmt: skip
        lines += ["", f"ours: {result['settings']['ours']}; stock: {result['settings']['stock']} (its fastest of "
                  f"{len(result['tried']['stock'])}). Medians of {len(steps['ours'])} steps each.", ""]  # fmt: skip
        lines += ["| | ours | stock |", "|---|---|---|"]
        for key in KEYS:
            a, b = (statistics.median(s["seconds"][key] for s in steps[side]) for side in ("ours", "stock"))
            lines.append(f"| {key}, s | {a:.3f} | {b:.3f} |")
        for name, value in (
            ("rollout tokens/s", lambda s: s["tokens"] / s["seconds"]["rollout"]),
            ("useful samples", lambda s: s["useful"]),
            ("useful samples/s", lambda s: s["useful"] / s["seconds"]["step"]),
        ):
            a, b = (statistics.median(map(value, steps[side])) for side in ("ours", "stock"))
            lines.append(f"| {name} | {a:,.1f} | {b:,.1f} |")
        peak = result["peak_gib"]
        lines += [f"| peak memory, GiB | {peak['ours']:.2f} | {peak['stock']:.2f} |", ""]
        for name, (median, low, high) in result["ratios"].items():
            lines.append(f"- {name}: {median:.2f} times (pairs from {low:.2f} to {high:.2f})")
        share = [s["seconds"]["sync"] / s["seconds"]["step"] for s in steps["ours"]]
        lines.append(f"- sync is {statistics.median(share):.1%} of our step")
        tried = [(side, *pair) for side in ("ours", "stock") for pair in result["tried"][side].items()]
        tries = "; ".join(f"{side} {name}: {value:.2f}" for side, name, value in tried)
        lines += ["", f"Seconds of a step in every setting tried: {tries}"]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the cases, write the tables."""
    import torch

    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["3b"] if cuda else ["student", "25m"])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--prompts-per-step", type=int)
    arguments = parser.parse_args()
    # cases that are not run now keep their numbers
    table = arguments.out / "grpo_step.json"
    measured = {found["case"]["name"]: found for found in (json.loads(table.read_text()) if table.exists() else [])}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.cases:
            print(name, flush=True)
            case = CASES[name]
            if arguments.prompts_per_step:
                case = replace(case, prompts_per_step=arguments.prompts_per_step)
            measured[name] = run_case(case, arguments.steps, Path(folder), cuda)
            results = [measured[other] for other in CASES if other in measured]
            table.write_text(json.dumps(results, indent=1) + "\n")
            table.with_suffix(".md").write_text(report(results))
    print(report(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
