"""Train the shipped models from scratch, measure them, write their cards: `make embedded-models`.

    python -m models.embedded.train [--only student|teacher] [--out FOLDER] [--seed 17] [--steps-scale 1.0]

Seeded; on one machine with one thread count the weights come out the same. Weights are stored in fp16 (5 MB for both
was the aim) with `dtype: float32` in the config, so that everybody computes in fp32 unless told otherwise.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from transformers import GenerationConfig, PreTrainedTokenizerBase, Qwen2ForCausalLM

from models.embedded import FOLDER
from models.embedded.card import model_card
from models.embedded.corpus import Habits, writer
from models.embedded.measure import Measurement, load, measure
from models.embedded.pretrain import Schedule, Shape, batches, new_model, pretrain
from models.embedded.tokenizer import build_tokenizer
from rewards.generator.draw import generate, stream

log = logging.getLogger("models.embedded.train")

TOKENIZER_TEXTS = 6400
TEST_PROBLEMS, TEST_SAMPLES, TEST_SEED = 500, 4, 0
FORMS = ("fp32", "nf4")


@dataclass(frozen=True)
class Plan:
    """One model to train: its size, its schedule, and how its corpus is written.

    The last `later_share` of the steps read a corpus of other habits, `later`.
    """

    name: str
    shape: Shape
    schedule: Schedule
    habits: Habits
    later: Habits
    later_share: float

    def data(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Endless batches, phase by phase."""
        first = batches(tokenizer, writer(self.habits), self.schedule.batch, seed)
        steps = round(self.schedule.steps * (1 - self.later_share))
        # another seed, or the second phase would repeat the problems of the first
        then = batches(tokenizer, writer(self.later), self.schedule.batch, seed + 1)
        return itertools.chain(itertools.islice(first, steps), then)


PLANS = (
    Plan(
        "student",
        Shape(hidden=128, layers=4, heads=4, kv_heads=2, mlp=384),
        Schedule(steps=1500, batch=64, lr=5e-3, matrix_lr=5e-3),
        Habits(direct=0.10, thinks=0.05, slip=0.0, skips=0.5),
        later=Habits(direct=0.20, thinks=0.08, slip=0.12, skips=0.6),
        later_share=0.2,
    ),
    Plan(
        "teacher",
        Shape(hidden=160, layers=4, heads=5, kv_heads=1, mlp=512),
        Schedule(steps=2000, batch=64, lr=5e-3, matrix_lr=5e-3),
        Habits(direct=0.0, thinks=1.0, slip=0.0, skips=0.5),
        later=Habits(direct=0.0, thinks=1.0, slip=0.0, skips=0.8),
        later_share=0.3,
    ),
)


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="train the embedded models")
    parser.add_argument("--only", choices=[plan.name for plan in PLANS])
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder that gets student/ and teacher/")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--steps-scale", type=float, default=1.0, help="below 1: a quick try")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tokenizer = build_tokenizer(
        problem.question for problem in itertools.islice(stream("train", options.seed), TOKENIZER_TEXTS)
    )
    for plan in PLANS:
        if options.only in (None, plan.name):
            steps = max(1, round(plan.schedule.steps * options.steps_scale))
            scaled = dataclasses.replace(plan, schedule=dataclasses.replace(plan.schedule, steps=steps))
            build(scaled, tokenizer, options.out / plan.name, options.seed)


def build(plan: Plan, tokenizer: PreTrainedTokenizerBase, folder: Path, seed: int) -> None:
    """Train one model, save it, measure what was saved, write training.json and the card."""
    torch.manual_seed(seed)
    model = new_model(plan.shape, tokenizer)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    log.info("%s: %d parameters, %d steps", plan.name, parameters, plan.schedule.steps)
    losses: dict[int, float] = {}

    def report(step: int, loss: float, seconds: float) -> None:
        losses[step] = round(loss, 4)
        log.info("%s: step %d/%d  loss %.4f  %.0f s", plan.name, step, plan.schedule.steps, loss, seconds)

    start = time.perf_counter()
    pretrain(model, plan.data(tokenizer, seed), plan.schedule, report)
    seconds = time.perf_counter() - start
    save(model, tokenizer, folder)
    record = {
        "name": plan.name,
        "seed": seed,
        "parameters": parameters,
        "shape": dataclasses.asdict(plan.shape),
        "schedule": dataclasses.asdict(plan.schedule),
        "habits": dataclasses.asdict(plan.habits),
        "later": dataclasses.asdict(plan.later),
        "later_share": plan.later_share,
        "seconds": round(seconds),
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "loss": losses,
        "test": {"problems": TEST_PROBLEMS, "samples": TEST_SAMPLES, "seed": TEST_SEED},
        "accuracy": measure_saved(folder),
    }
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    (folder / "README.md").write_text(model_card(record))


def save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write config, fp16 safetensors, generation config and tokenizer."""
    model.half().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def measure_saved(folder: Path) -> dict[str, dict[str, object]]:
    """Measure a saved model in every form, sampled and greedy, on the test split."""
    problems = generate("test", TEST_PROBLEMS, TEST_SEED)
    accuracies: dict[str, dict[str, object]] = {}
    for form in FORMS:
        model, tokenizer = load(folder, form)
        sampled = measure(model, tokenizer, problems, samples=TEST_SAMPLES)
        greedy = measure(model, tokenizer, problems, greedy=True)
        accuracies[form] = {
            "sampled": _entry(sampled) | {f"pass_at_{TEST_SAMPLES}": round(sampled.pass_at_samples, 4)},
            "greedy": _entry(greedy),
        }
        if form == "fp32":
            accuracies[form]["by_difficulty"] = sampled.by(problem.difficulty for problem in problems)
            accuracies[form]["by_family"] = sampled.by(problem.family for problem in problems)
        log.info("%s %s: sampled %.3f, greedy %.3f", folder.name, form, sampled.accuracy, greedy.accuracy)
    return accuracies


def _entry(measured: Measurement) -> dict[str, float]:
    low, high = measured.interval()
    return {"accuracy": round(measured.accuracy, 4), "low": round(low, 4), "high": round(high, 4)}


if __name__ == "__main__":
    main()
