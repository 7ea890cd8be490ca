"""A GRPO stage on the tiny model with rewards whose best policy is known: for tests and for the processes they kill."""

import json
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path

import tiny

from models.adapters import adapter_sha256, adapter_tensors
from models.base import load_tokenizer
from models.engines.serving import Served
from models.reference import Reference
from models.training import Probe
from rewards.problems import Asked, Problem
from rewards.scoring import RewardSet
from rl.settings import DynamicSampling, GrpoSettings, Rollouts
from rl.train import GrpoOutcome, train_grpo

DEFAULTS = {
    "steps": 6, "learning_rate": 2e-2, "prompts_per_step": 2, "group_size": 4, "max_completion_tokens": 12,
    "save_steps": 2, "mask_truncated_completions": False,
}  # fmt: skip


class Interrupted(Exception):
    """Stands in for whatever ends a run between two steps."""


def even(prompts, completions, completion_ids, **columns):
    """Share of even token ids: any policy can learn it, and two completions rarely tie."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


def even_unless_easy(prompts, completions, completion_ids, gold, **columns):
    """The same, but an easy problem pays 1 whatever is said: its groups have no variance."""
    values = even(prompts, completions, completion_ids)
    return [1.0 if answer == "easy" else value for answer, value in zip(gold, values, strict=True)]


def problems(count: int = 6, easy: int = 0) -> list[Problem]:
    """Questions that differ; the first `easy` of them are easy."""
    texts = [f"{tiny.QUESTIONS[i % len(tiny.QUESTIONS)]} ({i})" for i in range(count)]
    return [Problem(f"p{i}", text, "easy" if i < easy else "hard") for i, text in enumerate(texts)]


def asked(tokenizer, posed: list[Problem]) -> Asked:
    """Problems as the shipped models are asked them."""
    prompts = tiny.prompts(tokenizer, [problem.question for problem in posed])
    return Asked(tuple(posed), tuple(prompts), tuple(map(tuple, tiny.tokens(tokenizer, prompts))))


@dataclass
class Trained:
    """What a run left."""

    outcome: GrpoOutcome
    model: object
    steps_seen: list[int]
    folder: Path

    @property
    def sha256(self) -> str:
        return adapter_sha256(adapter_tensors(self.model))

    @property
    def metrics(self) -> list[dict]:
        return metrics(self.folder)


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@dataclass
class Stage:
    """A stage that can be run again and again; every run makes its policy anew, as a new process would.

    Fields:
        settings: of `GrpoSettings`, in the place of `DEFAULTS`.
        wild: the same, but beyond what a recipe may ask for.
        sweep: (policy, served, settings) -> what asks the policy on its way.
    """

    checkpoint: Path
    engine: object
    reference: str = "start"
    beta: float = 0.05
    reward: object = even
    count: int = 6
    easy: int = 0
    mask_zero_variance_kl: bool = True
    max_resamples: int = 0
    dtype: str = "float32"
    dropout: float = 0.0
    settings: dict = field(default_factory=dict)
    wild: dict = field(default_factory=dict)
    sweep: object = None

    def _reference(self, model) -> Reference:
        if self.reference == "base":
            return Reference("base", None)
        if self.reference == "start":
            return Reference("start", adapter_tensors(model))
        return Reference("imitate", adapter_tensors(tiny.policy(self.checkpoint, seed=5)))

    def run(self, folder: Path, *, stop_at: int | None = None, kill_at: int | None = None) -> Trained:
        """Run or resume in this folder; `stop_at` raises, `kill_at` kills the process, right after that step."""
        folder.mkdir(exist_ok=True, parents=True)
        seen = []

        def on_step(step, line):
            if line is not None:
                seen.append(step)
                if step == stop_at:
                    raise Interrupted
                if step == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        tokenizer = load_tokenizer(str(self.checkpoint))
        model = tiny.policy(self.checkpoint, dtype=self.dtype, dropout=self.dropout)
        posed = asked(tokenizer, problems(self.count, self.easy))
        settings = GrpoSettings(
            beta=self.beta,
            reference=self.reference,
            mask_zero_variance_kl=self.mask_zero_variance_kl,
            **DEFAULTS | self.settings,
        ).model_copy(update=self.wild)
        served = Served(self.engine, "folded", Probe.of_prompts(posed.tokens))
        rollouts = Rollouts(dynamic_sampling=DynamicSampling(max_resamples=self.max_resamples))
        outcome = train_grpo(
            model,
            tokenizer,
            posed,
            RewardSet([self.reward], ["even"], [1.0]),
            served,
            settings,
            rollouts.overridden_by(settings),
            folder,
            reference=self._reference(model),
            seed=3,
            report_to="none",
            on_step=on_step,
            sweep=self.sweep(model, served, settings) if self.sweep else None,
        )
        return Trained(outcome, model, seen, folder)
