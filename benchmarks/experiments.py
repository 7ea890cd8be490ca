"""The experiments that the recipes reproduce, at the embedded scale: one table, a row per question.

    python -m benchmarks.experiments [--seeds 3] [--only 21 ssd] [--runs runs] [--read]

`make experiments` runs every recipe below under that many training seeds (what is finished is not run again) and writes
benchmarks/experiments.json and .md. A row is a difference between two policies on the same held-out problems, with
problems and training seeds both drawn at random (evals/arms.py); with one seed it is about these runs. The p-values are
Holm-corrected for all rows. `--read` only reads the runs that are there.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from statsmodels.stats.multitest import multipletests

from evals.arms import Arm, Difference, Run, compare_arms
from evals.evaluate import Evaluation
from models.experts import BASE
from orchestra.config.experiment import load_experiment

HERE = Path(__file__).parent
LEVEL = 0.05


@dataclass(frozen=True)
class Policy:
    """One side of a question: the evaluation that a stage of an arm left, of one of its sets of problems."""

    arm: str
    stage: str
    of: str = ""

    def evaluation(self, run_dir: Path) -> Evaluation:
        """Raises FileNotFoundError where the run is not so far."""
        name = f"evaluation-{self.of}.json" if self.of else "evaluation.json"
        found = sorted(run_dir.glob(f"[0-9][0-9]-{self.stage}/{name}"))
        if not found:
            raise FileNotFoundError(f"{run_dir}: stage {self.stage!r} has no {name}")
        return Evaluation.read(found[0])


@dataclass(frozen=True)
class Question:
    """What is asked of a recipe's runs: `after` minus `before`."""

    recipe: str
    asked: str
    after: Policy
    before: Policy


QUESTIONS = (
    Question("21", "the model's own traces: imitating them against the base", Policy("self", "imitate"),
             Policy("self", BASE)),
    Question("21", "written solutions against the model's own traces, same problems", Policy("human", "imitate"),
             Policy("self", "imitate")),
    Question("24a", "the baseline against the base", Policy("24a", "imitate"), Policy("24a", BASE)),
    Question("29a", "few borderline solutions beside them", Policy("borderline", "imitate"),
             Policy("baseline", "imitate")),
    Question("29b", "twice the steps", Policy("twice", "imitate"), Policy("once", "imitate")),
    Question("29b", "twice the steps, best on validation problems, against once", Policy("twice-best", "imitate"),
             Policy("once", "imitate")),
    Question("29d", "trained on formal problems instead of stories: asked stories", Policy("math", "transfer"),
             Policy("gsm8k", "transfer")),
    Question("29d", "trained on formal problems instead of stories: asked formal ones",
             Policy("math", "transfer", "math"), Policy("gsm8k", "transfer", "math")),
    Question("ssd", "unchecked samples, 1,000 rows, against the base", Policy("rows-1k", "imitate"),
             Policy("base", "decode")),
    Question("ssd", "4,000 rows against the base", Policy("rows-4k", "imitate"), Policy("base", "decode")),
    Question("ssd", "effect of training alone: plain samples against the base", Policy("unshaped", "imitate"),
             Policy("base", "decode")),
    Question("ssd", "effect of their shape: truncated samples against plain ones", Policy("rows-1k", "imitate"),
             Policy("unshaped", "imitate")),
    Question("ssd", "min-p 0.1, no training", Policy("min-p", "decode"), Policy("base", "decode")),
    Question("ssd", "presence penalty 0.5, no training", Policy("presence", "decode"), Policy("base", "decode")),
    Question("40d-data", "own traces against a teacher's, after GRPO", Policy("self", "polish"),
             Policy("teacher", "polish")),
    Question("40d-data", "half and half against a teacher's, after GRPO", Policy("mixed", "polish"),
             Policy("teacher", "polish")),
    Question("40d-beta", "a rising KL penalty against none", Policy("rising", "polish"), Policy("flat", "polish")),
)  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """A question's row, of sampled and of greedy answers; `p_holm` is corrected for all rows of the pass."""

    recipe: str
    asked: str
    seeds: tuple[int, ...]
    problems: int
    sampled: Difference
    greedy: Difference


def run(recipe: str, seeds: int, runs: Path) -> None:
    """Run a recipe, or go on with it."""
    command = [sys.executable, "-m", "orchestra", "run", recipe, "--scale", "embedded", "--seeds", str(seeds)]
    subprocess.run([*command, "--runs", str(runs)], check=True)


def answer(question: Question, folder: Path) -> Answer:
    """A question's row from the finished runs of an experiment's folder. Raises FileNotFoundError."""
    seeds = json.loads((folder / "experiment.json").read_text(encoding="utf-8"))["seeds"]

    def arm(policy: Policy, name: str, of: str) -> Arm:
        read = {seed: policy.evaluation(folder / policy.arm / f"seed-{seed}") for seed in seeds}
        return Arm(name, [Run(seed, one.problem_ids, getattr(one, of).correct_PS) for seed, one in read.items()])

    found = {
        of: compare_arms([arm(question.before, "before", of), arm(question.after, "after", of)], 1 - LEVEL).rows[1]
        for of in ("sampled", "greedy")
    }
    differences = {of: row.difference for of, row in found.items()}
    return Answer(question.recipe, question.asked, tuple(seeds), found["sampled"].problems, **differences)


def corrected(answers: Sequence[Answer]) -> list[Answer]:
    """With Holm's correction over all rows, each pass on its own."""
    for of in ("sampled", "greedy"):
        p_holm = multipletests([getattr(one, of).p_value for one in answers], alpha=LEVEL, method="holm")[1]
        answers = [
            replace(one, **{of: replace(getattr(one, of), p_holm=float(p))})
            for one, p in zip(answers, p_holm, strict=True)
        ]
    return list(answers)


def verdict(one: Difference) -> str:
    """In words."""
    if one.p_holm < LEVEL:
        word = "better" if one.difference > 0 else "worse"
        return word if one.scope == "recipe" else f"{word}, of these runs"
    return "not resolved"


def cell(one: Difference) -> str:
    """`+6.6 [+4.8, +8.3]`, in points."""
    return f"{100 * one.difference:+.1f} [{100 * one.low:+.1f}, {100 * one.high:+.1f}]"


def table(answers: Sequence[Answer]) -> Iterator[str]:
    """Markdown, line by line."""
    yield "| recipe | question | seeds | sampled | p (Holm) | could have seen | | greedy | |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for one in answers:
        seen = one.sampled.smallest_detectable
        yield (
            f"| {one.recipe} | {one.asked} | {len(one.seeds)} | {cell(one.sampled)} "
            f"| {one.sampled.p_value:.2g} ({one.sampled.p_holm:.2g}) "
            f"| {'nothing' if seen is None else f'{100 * seen:.1f}'} | {verdict(one.sampled)} "
            f"| {cell(one.greedy)} | {verdict(one.greedy)} |"
        )


def reported(recipes: Sequence[str]) -> Iterator[str]:
    """What others reported, as lines of a list."""
    for recipe in recipes:
        told = load_experiment(recipe, None).reported
        if told is not None:
            figures = [f"{one.arm + ': ' if one.arm else ''}{one.what} {one.value:g}" for one in told.figures]
            yield f"- {recipe}: {'; '.join(figures) or 'no figures'} ({told.source})"


def folder_of(runs: Path, recipe: str) -> Path:
    """An experiment's folder."""
    return runs / f"{recipe}-embedded"


HEADER = """# The experiments at the embedded scale

Differences in accuracy on 500 held-out problems, in points with 95 % intervals; problems and training seeds both drawn
at random where there are several seeds (evals/arms.py). 4 samples a problem, and one greedy. "Could have seen": the
true difference that this design finds with a power of 80 % on its own. Holm: corrected for all rows of a pass. Made by
`make experiments`. The embedded models are tiny: what is resolved here is so for them, and for nobody's 3B model.
24a is arm `self` of 21, frozen: the same seeds give the same policies.

"""


def main() -> None:
    """Run what is not finished, then write the table."""
    recipes = list(dict.fromkeys(question.recipe for question in QUESTIONS))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=recipes, default=recipes)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--read", action="store_true")
    arguments = parser.parse_args()
    chosen = [recipe for recipe in recipes if recipe in arguments.only]
    if not arguments.read:
        for recipe in chosen:
            run(recipe, arguments.seeds, arguments.runs)
    asked = [question for question in QUESTIONS if question.recipe in chosen]
    answers = corrected([answer(question, folder_of(arguments.runs, question.recipe)) for question in asked])
    lines = list(table(answers))
    theirs = ["", "What others reported, of other models, mostly from single runs:", ""]
    text = HEADER + "\n".join([*lines, *theirs, *reported(chosen)]) + "\n"
    (HERE / "experiments.md").write_text(text, encoding="utf-8")
    (HERE / "experiments.json").write_text(json.dumps([asdict(one) for one in answers], indent=1) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
