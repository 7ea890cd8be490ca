"""Supervised fine-tuning of the adapter on traces: loss on the completion, prompts as in evaluation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from trl import SFTConfig, SFTTrainer

from models.adapters import adapter_tensors
from models.base import base_sha256
from models.sizes import traces_at_once
from models.sweep import Sweep
from models.training import (
    AdapterTrainer,
    MetricsFile,
    Probe,
    StepListener,
    TrainingError,
    learning_rate_course,
    per_process,
    reporting,
    trainer_arguments,
)
from sft.examples import example_tokens
from sft.settings import SftSettings

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase, TrainerCallback

IGNORED = -100
METRIC_NAMES = {"mean_token_accuracy": "token_accuracy"}


@dataclass(frozen=True)
class SftOutcome:
    """Examples used, left out as too long, and tokens a pass over the data trains on (completions only)."""

    examples: int
    too_long: int
    completion_tokens: int
    base_sha256: str


class ImitationTrainer(AdapterTrainer, SFTTrainer):
    """TRL's SFTTrainer on a float32 adapter with strict checkpoints, and with every example once an epoch.

    Several processes need equally many rows, so accelerate fills the last batches of an epoch up with its first
    examples; those are not trained on here, as they are not by one process. (Packed rows are: they cannot be told.)
    """

    def __init__(
        self,
        model: "PeftModel",
        args: SFTConfig,
        dataset: "Dataset",
        tokenizer: "PreTrainedTokenizerBase",
        probe: Probe,
        callbacks: "list[TrainerCallback]",
    ) -> None:
        policy = adapter_tensors(model)
        super().__init__(model=model, args=args, train_dataset=dataset, processing_class=tokenizer, callbacks=callbacks)
        self.keep_float32(policy)
        self.probe = probe

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        # TRL would count from 0 again
        told = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / TRAINER_STATE_NAME)).log_history
        self._total_train_tokens = next((line["num_tokens"] for line in reversed(told) if "num_tokens" in line), 0)

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, torch.Tensor]], num_batches: int, device: torch.device
    ) -> tuple:
        return super().get_batch_samples(map(self._without_repeats, epoch_iterator), num_batches, device)

    def _without_repeats(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if self.accelerator.num_processes > 1 and self.accelerator.gradient_state.end_of_dataloader:
            rows = self.args.per_device_train_batch_size
            place = self.accelerator.num_processes, self.accelerator.process_index
            if len(batch["labels"]) == rows:
                batch["labels"][last_own_rows(len(self.train_dataset), rows, *place) :] = IGNORED
        return batch


def last_own_rows(examples: int, rows: int, processes: int, process: int) -> int:
    """How many rows of a process's last batch of an epoch are not repeated from the epoch's beginning.

    Batches of `rows` go to the processes in turn, so the last ones hold the epoch's last `examples % (rows x
    processes)`, a process's after those of the processes before it.
    """
    left = examples % (rows * processes) or rows * processes
    return min(max(left - process * rows, 0), rows)


def train_sft(
    policy: "PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    completions: Sequence[str],
    settings: SftSettings,
    folder: Path,
    *,
    max_length: int,
    seed: int,
    report_to: str,
    on_step: StepListener | None = None,
    sweep: Sweep | None = None,
    moments: Path | None = None,
) -> SftOutcome:
    """Train the policy on (prompt, completion) pairs, resuming from the folder's last complete checkpoint.

    Args:
        prompts: rendered as for rollouts and evaluation; `completions` are without the end token, which is added.
        folder: gets metrics.jsonl and checkpoints/.
        max_length: tokens; `settings.max_length`, or what rollouts allow where that is None.
        report_to: see models/training.py, `reporting`.
        sweep: measures the policy on its way.
        moments: folder of an adapter whose optimizer this one goes on with; None: it begins anew.

    Raises:
        TrainingError: nothing to train on, NaN, a changed base.
    """
    rows = [_example(tokenizer, p, c) for p, c in zip(prompts, completions, strict=True)]
    fitting = [row for row in rows if len(row["input_ids"]) <= max_length]
    if not fitting:
        raise TrainingError(f"all {len(rows)} examples are longer than max_length ({max_length} tokens)")
    from datasets import Dataset

    before = base_sha256(policy)
    probe = Probe.of_prompts([row["input_ids"] for row in fitting])
    trl_reports_to, callbacks = reporting(report_to, folder)
    trainer = ImitationTrainer(
        model=policy,
        args=_arguments(settings, policy, folder / "checkpoints", max_length, seed, trl_reports_to),
        dataset=Dataset.from_list(fitting),
        tokenizer=tokenizer,
        probe=probe,
        callbacks=[
            MetricsFile(folder / "metrics.jsonl", METRIC_NAMES, on_step=on_step),
            *callbacks,
            *([sweep] if sweep else []),
        ],
    )
    trainer.moments = moments
    trainer.train_or_resume(settings.steps)
    if base_sha256(policy) != before:
        raise TrainingError("the frozen base changed while the policy was trained")
    tokens = sum(label != IGNORED for row in fitting for label in row["labels"])
    return SftOutcome(len(fitting), len(rows) - len(fitting), tokens, before)


def _example(tokenizer: "PreTrainedTokenizerBase", prompt: str, completion: str) -> dict[str, list[int]]:
    asked, answer = example_tokens(tokenizer, prompt, completion)
    return {"input_ids": asked + answer, "labels": [IGNORED] * len(asked) + answer}


def _arguments(
    settings: SftSettings, policy: "PeftModel", checkpoints: Path, max_length: int, seed: int, report_to: str
) -> SFTConfig:
    rows = per_process(settings.batch_size, "batch_size")
    at_once = traces_at_once(settings.micro_batch_size, rows, cuda=torch.cuda.is_available())
    common = trainer_arguments(
        settings,
        policy,
        checkpoints,
        rows=rows,
        rows_at_once=at_once,
        tokens_at_once=at_once * max_length,
        seed=seed,
        report_to=report_to,
    )
    return SFTConfig(
        **common,
        **learning_rate_course(settings.lr_scheduler_type, settings.warmup_ratio, settings.steps),
        max_length=max_length,
        packing=settings.packing,
    )
