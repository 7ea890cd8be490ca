"""Minutes to the same accuracy: ours against stock TRL 1.16 from the same SFT policy. `make bench` runs it.

    python -m benchmarks.minutes [--seeds 1 2 3] [--recipe 40d] [--runs runs/bench] [--set key=value ...]
                                 [--steps N] [--every K] [--problems N] [--out benchmarks]

Needs the runs that `python -m benchmarks.recipe_seeds` made with the same seeds and --set. Per seed both sides start
from the run's SFT policy on its 4-bit base and take as many steps with the settings of the recipe's first grpo stage:
problems and their order, rewards, prompts per step, group size, learning rate, beta, clipping, lengths. Each is a
process of its own; they take steps in turn, so nothing runs beside a step and what slows the machine slows both. Only
steps are on the clock: starting up (said below the table), keeping a policy every few steps, and evaluating are not.
Afterwards the recipe's evaluation, sampled, measures every policy kept.

Ours runs as the recipe says. Stock TRL is first tried in several settings on the same 4-bit values and runs in the
fastest; one that computes otherwise than the recipe must be faster by 5 % to be chosen, since it may learn less well.
What differs beside the code: stock TRL rounds a 4-bit model's adapter to bfloat16 and trains it so, divides by a
group's deviation also where all are right or all wrong (rl/advantages.py), and has neither dynamic sampling nor
`mask_zero_variance_kl`, which ours uses where the recipe says so. With beta above 0 both pull to the SFT policy.

Target and ratio: benchmarks/curves.py, `SHARE`. Written: minutes.json, minutes.md and minutes.svg, anew after each
seed. With the shipped recipe on 2 cores: about 7 minutes a seed and 2 for the settings that stock is tried in.
"""

import json
import multiprocessing
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.curves import SHARE, SHARES, SIDES, SeedCurves, draw, pooled, seed_curves, spread, table
from benchmarks.grpo_cases import Setting, Start, stock_settings
from benchmarks.grpo_step import Step, Trainer, alternate, timed
from benchmarks.grpo_task import ENDLESS, recipe_of
from benchmarks.kept_policies import evaluated
from benchmarks.recipe_seeds import HERE, failed_claims, overrides, parser_of_runs, points, run_folder
from evals.evaluate import Evaluation
from evals.statistics import PairedDifference
from models.sizes import arithmetic_name
from orchestra.config.faults import UserError
from orchestra.run.folder import read_json
from orchestra.run.ledger import Ledger
from rl.settings import GrpoSettings

MARGIN = 0.05
STEPS = 48
"""At most, where nothing is said."""
KEPT = 8
"""Policies kept of each side, where nothing is said."""


def start_of(run: Path, name: str, sets: Sequence[str], steps: int | None, every: int | None) -> Start:
    """The SFT policy of a finished run and the first grpo stage that takes it up.

    Args:
        sets: the overrides that the run must have been made with.
        steps: None: as many as the recipe's grpo stages have in all, at most `STEPS`.
        every: None: so many that `KEPT` policies are kept.

    Raises:
        UserError: there is no such run, it was made otherwise, or it is not that far.
    """
    first = "run `python -m benchmarks.recipe_seeds` with the same arguments first"
    about = read_json(run / "run.json")
    if not about:
        raise UserError(f"{run}: there is no run; {first}")
    if about["set"] != list(sets):
        made, wanted = (" ".join(f"--set {item}" for item in items) for items in (about["set"], sets))
        raise UserError(f"{run} was made with {made}, not {wanted}; {first}")
    recipe = recipe_of(run)
    sft = next((stage.name for stage in recipe.stages if "imitation" in stage.gives), None)
    stages = [stage for stage in recipe.stages if isinstance(stage, GrpoSettings)]
    stage = next((stage for stage in stages if sft in recipe.parents_of(stage.name)), None)
    if sft is None or stage is None:
        raise UserError(f"{run}: recipe {recipe.name!r} has no grpo stage that takes up an sft stage's policy")
    if sft not in Ledger(run).entries:
        raise UserError(f"{run}: stage {sft!r} is not finished; {first}")
    rollouts = recipe.rollouts.overridden_by(stage)
    steps = steps or min(STEPS, sum(one.steps for one in stages))
    return Start(
        name=name,
        run=str(run),
        sft=sft,
        stage=stage.name,
        batch=rollouts.prompts_per_step * rollouts.group_size,
        max_completion_tokens=rollouts.max_completion_tokens,
        steps=steps,
        every=every or -(-steps // KEPT),
    )


def check_one_recipe(runs: Sequence[Path]) -> None:
    """Raises UserError where the runs' recipes differ in more than the seed."""
    first, *others = runs
    for run in others:
        if recipe_of(run).model_copy(update={"seed": recipe_of(first).seed}) != recipe_of(first):
            raise UserError(f"{run} and {first} are of different recipes; make them anew with one")


def our_setting(start: Start, cuda: bool) -> Setting:
    """As the recipe says."""
    from models.engines.serving import which_sync

    recipe = recipe_of(Path(start.run))
    model, stage = recipe.model, recipe.stage(start.stage)
    return Setting(
        "ours",
        bf16=arithmetic_name(model.dtype, cuda=cuda) == "bfloat16",
        micro=stage.micro_batch_size,
        quantize=model.quantize,
        sync=which_sync(recipe.rollouts, model.quantize),
    )


def chosen(seconds: Mapping[Setting, float], bf16: bool) -> Setting:
    """The fastest, where one of another arithmetic must be faster by `MARGIN`."""
    return min(seconds, key=lambda one: seconds[one] * (1 if one.bf16 == bf16 else 1 + MARGIN))


@dataclass(frozen=True)
class Trained:
    """What training left: each side's steps, and the seconds before its first."""

    steps: dict[str, list[Step]]
    setup: dict[str, float]


def train(start: Start, settings: Mapping[str, Setting], folder: Path) -> Trained:
    """Both sides, a step each in turn."""
    folder.mkdir()
    sides = {side: Trainer(start, settings[side], folder) for side in SIDES}
    return Trained(alternate(sides, start.steps), {side: trainer.setup for side, trainer in sides.items()})


def measure(start: Start, folder: Path, problems: int | None) -> dict[str, dict[int, Evaluation]]:
    """Evaluate what was kept, in a process of its own: its engine goes with it."""
    folders = {side: folder / side for side in SIDES}
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(evaluated, start, folders, problems, folder / "evaluation.log").result()


@dataclass(frozen=True)
class Found:
    """What has been measured so far.

    Fields:
        settings: of each side.
        tried: seconds of a step in the settings that stock TRL was tried in.
        final: ours against stock after as many steps, all seeds together.
        seconds: of each side's step, median.
    """

    start: Start
    settings: Mapping[str, Setting]
    tried: Mapping[Setting, float]
    outcomes: Sequence[SeedCurves]
    final: PairedDifference
    seconds: Mapping[str, float]

    def write(self, folder: Path) -> None:
        """minutes.json, minutes.md and minutes.svg."""
        values = {
            "start": asdict(self.start),
            "settings": {side: str(setting) for side, setting in self.settings.items()},
            "tried": {str(setting): value for setting, value in self.tried.items()},
            "share": SHARE,
            "seeds": [asdict(one) | {"target": one.target(), "ratio": one.ratio()} for one in self.outcomes],
            "final": asdict(self.final),
            "step_seconds": self.seconds,
        }
        (folder / "minutes.json").write_text(json.dumps(values, indent=1) + "\n")
        (folder / "minutes.md").write_text(self.report())
        draw(self.outcomes, folder / "minutes.svg")

    def report(self) -> str:
        """Markdown."""
        start, ours, stock = self.start, self.settings["ours"], self.settings["stock"]
        recipe = recipe_of(Path(start.run))
        stage, resamples = recipe.stage(start.stage), recipe.rollouts.dynamic_sampling.max_resamples
        alone = ["a float32 adapter (TRL turns a 4-bit model's to bfloat16)"]
        scaled = stage.scale_rewards != "none"
        alone += ["advantages that stay small in groups all right or all wrong"] if scaled else []
        alone += [f"dynamic sampling, up to {resamples} rounds"] if resamples else []
        alone += ["no KL gradient for groups without a signal"] if stage.beta and stage.mask_zero_variance_kl else []
        ratios = {share: spread([one.ratio(share) for one in self.outcomes]) for share in SHARES}
        setup = {side: statistics.median(one.setup[side] for one in self.outcomes) for side in SIDES}
        tried = "; ".join(f"{setting}: {value:.2f}" for setting, value in self.tried.items())
        lines = [
            "# Minutes to the same accuracy: ours against stock TRL 1.16",
            "",
            f"Made by `make bench`; see benchmarks/minutes.py. Both sides take {start.steps} steps of {start.batch} "
            "completions from the",
            f"SFT policy of recipe {recipe.name!r} with the settings of its stage {start.stage!r} (learning rate "
            f"{stage.learning_rate:g}, beta {stage.beta:g}),",
            f"alternating step by step. The target is the SFT policy's accuracy plus {SHARE:.0%} of what stock TRL "
            "gains on it by its last",
            "step. Minutes are of training alone, to the first crossing, straight between the policies that were kept.",
            "Ratio: stock's minutes over ours.",
            "",
            f"**Ratio, median and range of the seeds: {ratios[SHARE]}**",
            "",
            table(self.outcomes),
            "",
            "![accuracy against minutes](minutes.svg)",
            "",
            f"- ours - stock after as many steps, all seeds together, in points: {points(self.final)}",
            *(f"- ratio to {share:.0%} of stock's gain: {ratio}" for share, ratio in ratios.items()),
            f"- a step, median: ours {self.seconds['ours']:.2f} s, stock {self.seconds['stock']:.2f} s; starting up, "
            f"not counted: ours {setup['ours']:.0f} s, stock {setup['stock']:.0f} s",
            f"- ours: {ours}, as the recipe says; stock: {stock}, of these (seconds a step): {tried}",
            f"- ours alone has {', '.join(alone)}",
        ]
        return "\n".join(lines) + "\n"


def main() -> int:
    """Run, write, check; returns 1 when a claim does not hold."""
    import torch

    cuda = torch.cuda.is_available()
    parser = parser_of_runs(__doc__)
    parser.add_argument("--steps", type=int, help=f"of each side; default: the recipe's, at most {STEPS}")
    parser.add_argument("--every", type=int, help=f"steps between policies kept; default: {KEPT} are kept")
    parser.add_argument("--problems", type=int, help="held-out problems; default: the recipe's")
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()
    if any(count is not None and count < 1 for count in (arguments.steps, arguments.every, arguments.problems)):
        parser.error("--steps, --every and --problems must be at least 1")
    arguments.out.mkdir(parents=True, exist_ok=True)
    starts = []
    for seed in arguments.seeds:
        run = run_folder(arguments.runs, seed, arguments.recipe)
        sets = overrides(seed, arguments.sets)
        starts.append(start_of(run, f"seed-{seed}", sets, arguments.steps, arguments.every))
    check_one_recipe([Path(start.run) for start in starts])
    ours = our_setting(starts[0], cuda)
    work = arguments.runs / "minutes"
    shutil.rmtree(work, ignore_errors=True)
    (work / "tried").mkdir(parents=True)
    endless = replace(starts[0], steps=ENDLESS, every=ENDLESS)
    tried = timed(endless, stock_settings(endless, cuda, ours.quantize), work / "tried")
    settings = {"ours": ours, "stock": chosen(tried, ours.bf16)}
    outcomes, last, steps = [], [], {side: [] for side in SIDES}
    for seed, start in zip(arguments.seeds, starts, strict=True):
        print(start.name, flush=True)
        trained = train(start, settings, work / start.name)
        evaluations = measure(start, work / start.name, arguments.problems)
        seconds = {side: [step.seconds["step"] for step in trained.steps[side]] for side in SIDES}
        outcomes.append(seed_curves(seed, seconds, evaluations, trained.setup))
        last.append(tuple(evaluations[side][start.steps] for side in SIDES))
        for side in SIDES:
            steps[side] += seconds[side]
        medians = {side: statistics.median(values) for side, values in steps.items()}
        found = Found(starts[0], settings, tried, outcomes, pooled(last), medians)
        # a seed that fails must not cost those before it
        found.write(arguments.out)
    print(found.report())
    return failed_claims({one.seed: one.checks() for one in outcomes})


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(str(error))
