"""Accuracy against minutes of training, ours and stock TRL's: time to a target, ratios, a table and a drawing."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.recipe_seeds import points
from evals.evaluate import Evaluation, compare
from evals.statistics import PairedDifference, paired_difference

SIDES = ("ours", "stock")
SHARE = 0.75
"""The target is the SFT policy's accuracy plus this share of what stock TRL has gained on it at its last step. So stock
sets the bar, and for ours it may stay out of reach; and the bar lies below the plateau, where noise would decide when
it is passed. The other `SHARES` are reported beside it."""
SHARES = (0.5, SHARE, 1.0)


@dataclass(frozen=True)
class Checkpoint:
    """A policy that was kept: after so many steps and minutes of training, with this accuracy."""

    step: int
    minutes: float
    accuracy: float


Curve = Sequence[Checkpoint]


def curve(seconds: Sequence[float], accuracies: Mapping[int, float]) -> list[Checkpoint]:
    """Checkpoints in their order.

    Args:
        seconds: of each step.
        accuracies: by number of steps; 0 is the start.
    """
    return [Checkpoint(step, sum(seconds[:step]) / 60, accuracies[step]) for step in sorted(accuracies)]


def minutes_to(target: float, reached: Curve) -> float | None:
    """Minutes until the curve, straight between its checkpoints, first is at the target; None where it never is."""
    if reached[0].accuracy >= target:
        return reached[0].minutes
    for before, after in pairwise(reached):
        if after.accuracy >= target:
            share = (target - before.accuracy) / (after.accuracy - before.accuracy)
            return before.minutes + share * (after.minutes - before.minutes)
    return None


@dataclass(frozen=True)
class SeedCurves:
    """One seed.

    Fields:
        curves: each side's, from the SFT policy at 0 minutes on.
        stock_gain: stock's last policy against the SFT policy; final: our last against stock's last, after as many
            steps. Both paired by problem.
        setup: seconds that each side's process took to its first step, which are not in the curves.
    """

    seed: int
    curves: dict[str, list[Checkpoint]]
    stock_gain: PairedDifference
    final: PairedDifference
    setup: dict[str, float]

    @property
    def sft(self) -> float:
        """Where both start."""
        return self.curves["stock"][0].accuracy

    def target(self, share: float = SHARE) -> float | None:
        """See `SHARE`; None where stock TRL's gain is not more than chance."""
        return self.sft + share * self.stock_gain.difference if self.stock_gain.low > 0 else None

    def minutes(self, side: str, share: float = SHARE) -> float | None:
        """Of training to the target, where there is one and the side reaches it."""
        target = self.target(share)
        return minutes_to(target, self.curves[side]) if target is not None else None

    def ratio(self, share: float = SHARE) -> float | None:
        """Stock's minutes to the target over ours."""
        ours, stock = (self.minutes(side, share) for side in SIDES)
        return stock / ours if ours is not None and stock is not None else None

    def checks(self) -> dict[str, bool]:
        """What is claimed."""
        ratio = self.ratio()
        return {
            "stock TRL gains on SFT": self.stock_gain.low > 0,
            "ours is sooner at the target": ratio is not None and ratio > 1,
            "ours is not below stock after as many steps": self.final.high >= 0,
        }


def seed_curves(
    seed: int,
    seconds: Mapping[str, Sequence[float]],
    evaluations: Mapping[str, Mapping[int, Evaluation]],
    setup: Mapping[str, float],
) -> SeedCurves:
    """From the seconds of each side's steps and the evaluations of what it kept, by step; 0 is the SFT policy."""
    curves = {
        side: curve(seconds[side], {step: one.sampled.accuracy.estimate for step, one in evaluations[side].items()})
        for side in SIDES
    }
    last = {side: evaluations[side][max(evaluations[side])] for side in SIDES}
    return SeedCurves(
        seed,
        curves,
        stock_gain=compare(last["stock"], evaluations["stock"][0]),
        final=compare(last["ours"], last["stock"]),
        setup=dict(setup),
    )


def pooled(pairs: Sequence[tuple[Evaluation, Evaluation]]) -> PairedDifference:
    """Our last policies against stock's of all seeds, paired and clustered by problem.

    Raises:
        ValueError: they are not of the same problems in the same order.
    """
    if len({one.problem_ids for pair in pairs for one in pair}) > 1:
        raise ValueError("pooled: the seeds were evaluated on different problems")
    ours_PS, stock_PS = (np.concatenate([pair[i].sampled.correct_PS for pair in pairs], axis=1) for i in (0, 1))
    return paired_difference(ours_PS, stock_PS, pairs[0][0].sampled.accuracy.confidence)


def spread(ratios: Sequence[float | None]) -> str:
    """`1.60 (1.35 to 2.02)`: median and range; where there is none, that is said."""
    known = [value for value in ratios if value is not None]
    if not known:
        return "none"
    missing = f"; none in {len(ratios) - len(known)} of {len(ratios)} seeds" if len(known) < len(ratios) else ""
    return f"{statistics.median(known):.2f} ({min(known):.2f} to {max(known):.2f}{missing})"


def table(outcomes: Sequence[SeedCurves]) -> str:
    """Markdown."""

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else f"{value:{form}}"

    lines = [
        "| seed | SFT | stock | ours | ours - stock, equal steps | target | ours, min | stock, min | ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in outcomes:
        ours, stock = (one.curves[side][-1].accuracy for side in SIDES)
        minutes = " | ".join(number(one.minutes(side), ".2f") for side in SIDES)
        lines.append(
            f"| {one.seed} | {one.sft:.3f} | {stock:.3f} | {ours:.3f} | {points(one.final)} "
            f"| {number(one.target(), '.3f')} | {minutes} | {number(one.ratio(), '.2f')} |"
        )
    return "\n".join(lines)


def draw(outcomes: Sequence[SeedCurves], path: Path) -> None:
    """A panel per seed, accuracy in per cent against minutes, as SVG."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    style = {"svg.fonttype": "none", "svg.hashsalt": "minutes", "font.size": 8, "axes.spines.top": False,
             "axes.spines.right": False}  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(3.0 * len(outcomes), 2.5), layout="constrained")
        panels = figure.subplots(1, len(outcomes), sharey=True, squeeze=False)[0]
        for axes, one in zip(panels, outcomes, strict=True):
            for side, label, color in (("ours", "ours", "#1f6feb"), ("stock", "stock TRL", "#b35900")):
                minutes, accuracies = zip(*((c.minutes, c.accuracy) for c in one.curves[side]), strict=True)
                axes.plot(minutes, accuracies, color=color, linewidth=1.5, marker="o", markersize=3, label=label)
            if (target := one.target()) is not None:
                axes.axhline(target, color="#6e7781", linewidth=0.8, linestyle=(0, (3, 3)))
            axes.set_title(f"seed {one.seed}", loc="left", fontsize=8)
            axes.set_xlabel("minutes of training")
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axes.grid(axis="y", linewidth=0.4)
        panels[0].legend(frameon=False, loc="lower right")
        figure.savefig(path, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
