"""The main recipe at the embedded scale under several seeds: what it reaches, with intervals. `make bench` runs it.

    python -m benchmarks.recipe_seeds [--seeds 1 2 3] [--recipe 40d] [--runs runs/bench] [--set key=value ...]

Each seed is a run of its own (finished ones are reused), 500 held-out problems that are the same for all seeds, 4
samples each at T = 1 and one greedy. Written: benchmarks/recipe_seeds.json and .md. The differences are paired by
problem; the checks at the end are the claims that the README makes.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from evals.evaluate import Evaluation, compare
from evals.statistics import PairedDifference

HERE = Path(__file__).parent


@dataclass(frozen=True)
class SeedOutcome:
    """One seed. Accuracies are shares; differences are paired, with the interval and p-value of evals/statistics.py."""

    seed: int
    base: float
    sft: float
    final: float
    sft_greedy: float
    final_greedy: float
    final_minus_base: PairedDifference
    final_minus_sft: PairedDifference
    greedy_final_minus_sft: PairedDifference
    kl: dict[str, float]
    seconds: float
    memory_gib: float

    def checks(self) -> dict[str, bool]:
        """The claims: +25 points over base; over SFT +8, greedy +3, each at p < 0.05; KL narrowed at the end."""
        kl = list(self.kl.values())
        return {
            "final - base >= 25 points": self.final_minus_base.difference >= 0.25,
            "GRPO - SFT >= 8 points, p < 0.05": _gains(self.final_minus_sft, 0.08),
            "GRPO - SFT >= 3 points greedy, p < 0.05": _gains(self.greedy_final_minus_sft, 0.03),
            "KL of the last stage below the one before": len(kl) < 2 or kl[-1] < kl[-2],
        }


def _gains(difference: PairedDifference, least: float) -> bool:
    return difference.difference >= least and difference.p_value < 0.05


def run_folder(runs: Path, seed: int, recipe: str) -> Path:
    """Where the run of a seed is."""
    return runs / f"seed-{seed}" / f"{recipe}-embedded"


def overrides(seed: int, sets: Sequence[str]) -> list[str]:
    """What the recipe is run with under a seed."""
    return [f"seed={seed}", *sets]


def run_seed(seed: int, recipe: str, runs: Path, sets: Sequence[str]) -> Path:
    """Run the recipe under one seed; returns the run's folder."""
    folder = run_folder(runs, seed, recipe)
    command = [sys.executable, "-m", "orchestra", "run", recipe, "--scale", "embedded", "--runs", str(folder.parent)]
    for item in overrides(seed, sets):
        command += ["--set", item]
    subprocess.run(command, check=True)
    return folder


def outcome(seed: int, run: Path) -> SeedOutcome:
    """Read a finished run."""
    stages = [json.loads(path.read_text()) for path in sorted(run.glob("[0-9][0-9]-*/result.json"))]
    sft = next(stage["name"] for stage in stages if stage["kind"] == "sft")
    final = [stage["name"] for stage in stages if stage["kind"] == "grpo"][-1]
    read = {
        name: Evaluation.read(next(run.glob(f"[0-9][0-9]-{name}/evaluation.json"))) for name in ("base", sft, final)
    }
    return SeedOutcome(
        seed=seed,
        base=read["base"].sampled.accuracy.estimate,
        sft=read[sft].sampled.accuracy.estimate,
        final=read[final].sampled.accuracy.estimate,
        sft_greedy=read[sft].greedy.accuracy.estimate,
        final_greedy=read[final].greedy.accuracy.estimate,
        final_minus_base=compare(read[final], read["base"]),
        final_minus_sft=compare(read[final], read[sft]),
        greedy_final_minus_sft=compare(read[final], read[sft], of="greedy"),
        kl={stage["name"]: stage["kl"] for stage in stages if stage["kl"] is not None},
        seconds=sum(stage["seconds"] for stage in stages),
        memory_gib=max(stage["extra"].get("peak_memory_bytes", 0) for stage in stages) / 2**30,
    )


def points(difference: PairedDifference) -> str:
    """`+6.6 [+4.8, +8.3], p = 0.0002`."""
    low, high = 100 * difference.low, 100 * difference.high
    return f"{100 * difference.difference:+.1f} [{low:+.1f}, {high:+.1f}], p = {difference.p_value:.2g}"


def table(outcomes: list[SeedOutcome]) -> str:
    """Markdown."""
    lines = [
        "| seed | base | SFT | final | final - base | GRPO - SFT | greedy: SFT, final | KL by stage | time | memory |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in outcomes:
        kl = ", ".join(f"{name} {value:.2g}" for name, value in one.kl.items())
        greedy = f"{one.sft_greedy:.3f}, {one.final_greedy:.3f} ({points(one.greedy_final_minus_sft)})"
        lines.append(
            f"| {one.seed} | {one.base:.3f} | {one.sft:.3f} | {one.final:.3f} | {points(one.final_minus_base)} "
            f"| {points(one.final_minus_sft)} | {greedy} | {kl} "
            f"| {one.seconds / 60:.1f} min | {one.memory_gib:.1f} GiB |"
        )
    return "\n".join(lines)


def parser_of_runs(description: str | None) -> argparse.ArgumentParser:
    """Options that say which runs: of which recipe, seeds and overrides, and where."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--recipe", default="40d")
    parser.add_argument("--runs", type=Path, default=Path("runs/bench"))
    parser.add_argument("--set", dest="sets", action="append", default=[])
    return parser


def failed_claims(claims: Mapping[int, Mapping[str, bool]]) -> int:
    """Say which claims, by seed, do not hold; returns 1 when there are such."""
    failed = [f"seed {seed}: {claim}" for seed, own in claims.items() for claim, holds in own.items() if not holds]
    for line in failed:
        print("does not hold:", line)
    return 1 if failed else 0


def main() -> int:
    """Run, write, check; returns 1 when a claim does not hold."""
    arguments = parser_of_runs(__doc__).parse_args()
    outcomes = [
        outcome(seed, run_seed(seed, arguments.recipe, arguments.runs, arguments.sets)) for seed in arguments.seeds
    ]
    text = table(outcomes)
    header = (
        f"# {arguments.recipe} at the embedded scale, {len(outcomes)} seeds\n\n"
        "500 held-out problems, 4 samples each at T = 1 and one greedy; differences in points, paired by problem,\n"
        "with 95 % intervals (evals/statistics.py). Made by `make bench`.\n\n"
    )
    (HERE / "recipe_seeds.md").write_text(header + text + "\n")
    (HERE / "recipe_seeds.json").write_text(json.dumps([asdict(one) for one in outcomes], indent=1) + "\n")
    print(text)
    return failed_claims({one.seed: one.checks() for one in outcomes})


if __name__ == "__main__":
    sys.exit(main())
