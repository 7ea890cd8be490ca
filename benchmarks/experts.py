"""Panels of experts at the embedded scale: what routing, growing and merging win and cost.

    python -m benchmarks.experts [--seeds 3] [--runs runs] [--read]

`make bench-experts` runs benchmarks/experts.yaml (a panel of four, its rivals, every merge rule, a mixture) and
benchmarks/experts_growth.yaml (two experts, grown to at most four) under that many training seeds, goes on with what is
not finished, and writes benchmarks/experts.md and .json. Differences are paired, problems and training seeds both drawn
at random (evals/arms.py). `--read` only reads the runs that are there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.routing_curve import Curve, curve, draw
from evals.arms import Arm, Difference, Run, compare_arms
from evals.evaluate import Evaluation
from evals.panel import PanelEvaluation, answers_of, best_by_problem
from models.experts import BASE, read_panel
from orchestra.work.arms import correct_APS

HERE = Path(__file__).parent
CONFIDENCE = 0.95
MERGES = ("by-load", "best", "linear", "svd", "ties", "dare-ties")
PANEL, GROWTH = "bench-experts-embedded", "bench-growth-embedded"


@dataclass(frozen=True)
class Row:
    """`after` minus `before`, with the accuracy of `before`, mean over seeds."""

    asked: str
    accuracy: float
    difference: Difference


@dataclass(frozen=True)
class Cost:
    """Of one run, in seconds: the panel's answers to the held-out problems, one expert's (mean over the experts), and
    the routing before; 500 problems x 4 samples each."""

    routed: float
    alone: float
    routing: float


@dataclass(frozen=True)
class Result:
    """All that the page says."""

    seeds: tuple[int, ...]
    ways: tuple[Row, ...]
    merges: tuple[Row, ...]
    growth: Row
    recovered: tuple[float | None, ...]
    headroom: tuple[float, ...]
    experts: tuple[int, ...]
    unchanged: bool
    costs: tuple[Cost, ...]
    curve: Curve


def stage(run_dir: Path, name: str) -> Path:
    """A finished stage's folder. Raises FileNotFoundError where the run is not so far."""
    found = sorted(run_dir.glob(f"[0-9][0-9]-{name}/result.json"))
    if not found:
        raise FileNotFoundError(f"{run_dir}: stage {name!r} is not finished")
    return found[0].parent


def evaluation(run_dir: Path, name: str) -> Evaluation:
    """What a stage's policy, or panel, did."""
    return Evaluation.read(stage(run_dir, name) / "evaluation.json")


def answered_by(way: str) -> Callable[[Path], tuple[Sequence[str], np.ndarray]]:
    """What is answered in a way of choosing: the problems' ids, and problems x samples."""

    def read(run_dir: Path) -> tuple[Sequence[str], np.ndarray]:
        if way in ("generalist", "base"):
            found = evaluation(run_dir, way)
            return found.problem_ids, found.sampled.correct_PS
        folder = stage(run_dir, "route")
        second = draw(folder, "second")
        ids, second_APS = second["base"].problem_ids, correct_APS(second, list(second))
        if way == "random":
            return ids, np.concatenate(second_APS[1:], axis=1)
        said = PanelEvaluation.from_json((folder / "panel-evaluation.json").read_text(encoding="utf-8"))
        if way == "best single":
            return ids, second[said.best_single].sampled.correct_PS
        if way == "instance oracle":
            return ids, answers_of(second_APS, best_by_problem(correct_APS(draw(folder, "first"), list(second))))
        arms = list(second)
        chosen = {
            domain.name: arms.index(domain.oracle if way == "task oracle" else domain.table) for domain in said.domains
        }
        return ids, answers_of(second_APS, np.array([chosen[domain] for domain in domains_of(folder, ids)]))

    return read


def domains_of(folder: Path, ids: Sequence[str]) -> list[str]:
    """The domain of each of the generator's problems, by its id."""
    from rewards.generator.families import FAMILIES

    domain_of = {family.name: family.domain for family in FAMILIES}
    return [domain_of[id.rpartition("-")[0]] for id in ids]


def row(asked: str, before: Callable, after: Callable, runs: Sequence[Path]) -> Row:
    """A difference over all seeds."""

    def arm(name: str, read: Callable[[Path], tuple[Sequence[str], np.ndarray]]) -> Arm:
        return Arm(name, [Run(seed_of(run_dir), *read(run_dir)) for run_dir in runs])

    found = compare_arms([arm("before", before), arm("after", after)], CONFIDENCE).rows
    return Row(asked, found[0].accuracy.estimate, found[1].difference)


def seed_of(run_dir: Path) -> int:
    """Of `.../seed-3`."""
    return int(run_dir.name.rpartition("-")[2])


def of_stage(name: str) -> Callable[[Path], tuple[Sequence[str], np.ndarray]]:
    """A stage's own evaluation."""

    def read(run_dir: Path) -> tuple[Sequence[str], np.ndarray]:
        found = evaluation(run_dir, name)
        return found.problem_ids, found.sampled.correct_PS

    return read


def runs_of(folder: Path) -> list[Path]:
    """The runs of an experiment's only arm, by seed."""
    seeds = json.loads((folder / "experiment.json").read_text(encoding="utf-8"))["seeds"]
    found = {seed_of(path): path for path in folder.glob("**/seed-*") if (path / "run.json").is_file()}
    return [found[seed] for seed in seeds]


def cost(run_dir: Path) -> Cost:
    """What the panel's evaluation took beside one expert's."""
    folder = stage(run_dir, "route")
    experts = [one.sampled.seconds for name, one in draw(folder, "second").items() if name != BASE]
    told = json.loads((folder / "result.json").read_text(encoding="utf-8"))["extra"]
    return Cost(evaluation(run_dir, "route").sampled.seconds, float(np.mean(experts)), told["routing_seconds"])


def unchanged(run_dir: Path) -> bool:
    """Whether the experts of before the growth are there after it, byte for byte."""
    before, after = (read_panel(stage(run_dir, name) / "panel") for name in ("experts", "grow"))
    return all(one.name in after and after.expert(one.name).files == one.files for one in before.experts)


def measured(folder: Path) -> Result:
    """Everything, from finished runs. Raises FileNotFoundError."""
    runs, grown = runs_of(folder / PANEL), runs_of(folder / GROWTH)
    routed = of_stage("route")
    ways = ("base", "random", "best single", "generalist", "domain table", "task oracle", "instance oracle")
    told = [json.loads((stage(one, "route") / "panel-evaluation.json").read_text())["recovered"] for one in runs]
    return Result(
        seeds=tuple(map(seed_of, runs)),
        ways=tuple(row(way, answered_by(way), routed, runs) for way in ways),
        merges=tuple(row(rule, of_stage(rule), routed, runs) for rule in (*MERGES, "mixture")),
        growth=row("two experts", of_stage("two"), of_stage("grow"), grown),
        recovered=tuple(one["share"] for one in told),
        headroom=tuple(one["headroom"] for one in told),
        experts=tuple(len(read_panel(stage(one, "grow") / "panel").experts) for one in grown),
        unchanged=all(map(unchanged, grown)),
        costs=tuple(map(cost, runs)),
        curve=curve([stage(one, "route") for one in runs]),
    )


def points(one: Difference) -> str:
    """`+6.6 [+4.8, +8.3]`, in points."""
    return f"{100 * one.difference:+.1f} [{100 * one.low:+.1f}, {100 * one.high:+.1f}]"


def page(found: Result) -> Iterator[str]:
    """Markdown, line by line."""
    yield from (
        "# Panels of experts at the embedded scale", "",
        f"{len(found.seeds)} training seeds, 500 held-out problems, 4 samples each; differences in points with 95 % "
        "intervals, paired, problems and seeds both drawn at random. Made by `make bench-experts`.", "",
        "Four experts (rank 16, 240 steps each on the own verified traces of their domain) and a router, against:", "",
        "| answered by | accuracy | routed panel minus it | p |", "|---|---|---|---|",
    )  # fmt: skip
    for one in found.ways:
        yield f"| {one.asked} | {one.accuracy:.1%} | {points(one.difference)} | {one.difference.p_value:.2g} |"
    shares = ", ".join("not known" if one is None else f"{one:.0%}" for one in found.recovered)
    yield from (
        "", "The generalist is one adapter of rank 64, as many parameters, trained on all traces for 960 steps in all.",
        "Oracles and the best single expert are chosen on one draw (8 samples) and scored on another.", "",
        f"Share recovered of what the instance oracle adds to the best single expert, by seed: {shares}.", "",
        *found.curve.lines(), "", "## Merging", "",
        "What is lost where the panel becomes one adapter (`merge`), or is mixed inside the middle layers (Arrow):", "",
        "| rule | accuracy | merge gap: routed panel minus it | p |", "|---|---|---|---|",
    )  # fmt: skip
    for one in found.merges:
        yield f"| {one.asked} | {one.accuracy:.1%} | {points(one.difference)} | {one.difference.p_value:.2g} |"
    one = found.growth
    yield from (
        "", "## Growing", "",
        f"From two experts, by the signals, to {', '.join(map(str, found.experts))}: the routed panel gains "
        f"{points(one.difference)} points on held-out problems (from {one.accuracy:.1%}). The files of the experts "
        f"that were there are {'the same, byte for byte' if found.unchanged else 'NOT the same'}.", "",
        "## What it costs", "",
        "| seed | panel of four, s | one expert, s | ratio | routing, s | of the evaluation |",
        "|---|---|---|---|---|---|",
    )  # fmt: skip
    for seed, one in zip(found.seeds, found.costs, strict=True):
        share = one.routing / (one.routing + one.routed)
        yield (
            f"| {seed} | {one.routed:.2f} | {one.alone:.2f} | {one.routed / one.alone:.2f} | {one.routing:.2f} "
            f"| {share:.1%} |"
        )
    yield from ("", "The panel's seconds have the pushes of its experts into the engine in them.")


def main() -> None:
    """Run what is not finished, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--read", action="store_true")
    arguments = parser.parse_args()
    for recipe in ("experts.yaml", "experts_growth.yaml") if not arguments.read else ():
        command = [sys.executable, "-m", "orchestra", "run", str(HERE / recipe), "--scale", "embedded"]
        command += ["--seeds", str(arguments.seeds), "--runs", str(arguments.runs)]
        subprocess.run(command, check=True)
    found = measured(arguments.runs)
    text = "\n".join(page(found))
    (HERE / "experts.md").write_text(text + "\n", encoding="utf-8")
    (HERE / "experts.json").write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
