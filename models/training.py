"""What both trainers (sft/, rl/) need around TRL: strict checkpoints of the adapter, step metrics, a stop on NaN.

transformers resumes a model with several adapters from the sub-folders of a checkpoint only, and so drops the trained
one, which lies at the root; and TRL turns the adapter of a 4-bit model into bfloat16. `AdapterTrainer` undoes both.
"""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PrinterCallback, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from models.adapters import adapter_sha256, adapter_tensors, read_adapter, save_adapter, write_adapter
from models.base import arithmetic_of, base_sha256, trained_arithmetic
from models.moments import load_moments, save_moments
from models.processes import rank
from models.settings import TrainingSettings
from models.sizes import activation_bytes, must_checkpoint

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import TrainerControl, TrainingArguments

RECORD = "policy.json"
# forward passes of the same weights, perhaps on another machine; a lost policy is off by far more
RESUME_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05}
# a loss is of order 1 (a token's cross-entropy; an advantage plus a penalty); what is this large will not come back
EXPLODED = 1e4


class TrainingError(RuntimeError):
    """Training cannot go on; what was saved last is kept."""

    user_message = True


class ResumeError(TrainingError):
    """A checkpoint that does not hold what its record says."""


@dataclass(frozen=True)
class PolicyRecord:
    """What a checkpoint says of its policy, compared again before the first step after a resume.

    Fields:
        step: optimizer steps taken.
        adapter_sha256, base_sha256: see models/adapters.py and models/base.py.
        probe_logprobs: log-probabilities (nats) of the probe's tokens under the policy.
    """

    step: int
    adapter_sha256: str
    base_sha256: str
    probe_logprobs: list[list[float]]


@dataclass(frozen=True)
class Probe:
    """A fixed small batch of prompt and continuation tokens on which policies and engines are compared."""

    prompts: Sequence[Sequence[int]]
    completions: Sequence[Sequence[int]]

    @classmethod
    def of_prompts(cls, prompts: Sequence[Sequence[int]], count: int = 4) -> "Probe":
        """The second halves of a few prompts as continuations of the first: natural text, and nothing to sample."""
        chosen = [list(prompt) for prompt in prompts[:count] if len(prompt) > 1]
        return cls([p[: len(p) // 2] for p in chosen], [p[len(p) // 2 :] for p in chosen])

    @torch.no_grad()
    def logprobs(self, model: torch.nn.Module) -> list[list[float]]:
        """Log-probability of each continuation token under the model's active adapter, at temperature 1.

        In the arithmetic of training, whether or not accelerate has the model in hand already (at a resume it has not).
        """
        device = next(model.parameters()).device
        scored = []
        with without_dropout(model), trained_arithmetic(model):
            for prompt, completion in zip(self.prompts, self.completions, strict=True):
                ids = torch.tensor([[*prompt, *completion]], device=device)
                steps = model(ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
                scored.append(steps.gather(-1, ids[0, len(prompt) :, None])[:, 0].tolist())
        return scored


@contextmanager
def without_dropout(model: torch.nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def mean_difference(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> float:
    """Mean absolute difference of two nested lists of log-probabilities, in nats."""
    pairs = [(x, y) for row_a, row_b in zip(a, b, strict=True) for x, y in zip(row_a, row_b, strict=True)]
    return sum(abs(x - y) for x, y in pairs) / max(len(pairs), 1)


class AdapterTrainer:
    """Mixed into a TRL trainer, in front of it; call `keep_float32` after TRL's __init__ and set `probe`; `moments` is
    the folder of an adapter whose optimizer this one goes on with."""

    probe: Probe
    moments: Path | None = None

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model)
        if self.moments is not None:
            load_moments(self._policy(), optimizer, self.moments)
        return optimizer

    def keep_float32(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put back the adapter's own float32 values."""
        write_adapter(self._policy(), tensors)

    def _policy(self) -> "PeftModel":
        return self.accelerator.unwrap_model(self.model)

    def create_model_card(self, *args: object, **kwargs: object) -> None:
        """Checkpoints need no model card; the export writes one."""

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        save_adapter(self._policy(), Path(output_dir or self.args.output_dir))

    def _save_checkpoint(self, model: torch.nn.Module, trial: object) -> None:
        super()._save_checkpoint(model, trial)
        # every process writes its random state into it
        self.accelerator.wait_for_everyone()
        if not self.args.should_save:
            return
        policy = self._policy()
        logprobs = self.probe.logprobs(policy)
        if not math.isfinite(sum(map(sum, logprobs))):
            raise TrainingError(self._diverged("the policy's log-probabilities are no numbers", step=0))
        record = PolicyRecord(
            step=self.state.global_step,
            adapter_sha256=adapter_sha256(adapter_tensors(policy)),
            base_sha256=base_sha256(policy),
            probe_logprobs=logprobs,
        )
        folder = checkpoint_at(Path(self.args.output_dir), self.state.global_step)
        if self.state.global_step == self.args.max_steps:
            save_moments(policy, self.optimizer, folder)
        # written last: a checkpoint without it was cut off and is not resumed from
        (folder / RECORD).write_text(json.dumps(asdict(record), allow_nan=False))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        record = PolicyRecord(**json.loads((folder / RECORD).read_text()))
        policy = self._policy()
        write_adapter(policy, read_adapter(folder), source=str(folder))
        if adapter_sha256(adapter_tensors(policy)) != record.adapter_sha256:
            raise ResumeError(f"{folder}: the adapter is not the one that was saved (its hash differs from {RECORD})")
        if base_sha256(policy) != record.base_sha256:
            raise ResumeError(f"{folder}: the base is not the one that this adapter was trained on")
        off = mean_difference(self.probe.logprobs(policy), record.probe_logprobs)
        if not off <= RESUME_TOLERANCE[arithmetic_of(policy)]:
            raise ResumeError(
                f"{folder}: the loaded policy's log-probabilities differ from the saved ones by {off:.2g} nats a token"
            )

    def last_logged(self, name: str) -> float:
        """A metric's value at the last step that told it, be it in this process or before a resume."""
        return next(line[name] for line in reversed(self.state.log_history) if name in line)

    def train_or_resume(self, steps: int) -> None:
        """Train up to `steps`, from the last complete checkpoint where there is one."""
        last = last_checkpoint(Path(self.args.output_dir))
        if last is not None and last == checkpoint_at(last.parent, steps):
            # killed after training: transformers would take one more step
            self._load_from_checkpoint(str(last))
            self.state = TrainerState.load_from_json(str(last / TRAINER_STATE_NAME))
            return
        # bars and metrics.jsonl show the steps; the log needs no second copy
        self.remove_callback(PrinterCallback)
        self.train(resume_from_checkpoint=str(last) if last else None)

    def training_step(self, *args: object, **kwargs: object) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if not loss.abs() < EXPLODED:  # NaN is not less either
            raise TrainingError(self._diverged(f"the loss is {loss.item():.4g}"))
        return loss

    def _clip_grad_norm(self, model: torch.nn.Module) -> torch.Tensor:
        norm = super()._clip_grad_norm(model)
        if not math.isfinite(float(norm)):
            raise TrainingError(self._diverged(f"the gradient's norm is {float(norm)}"))
        return norm

    def _diverged(self, what: str, step: int = 1) -> str:
        """The message; `step` counts from those that were taken."""
        last = last_checkpoint(Path(self.args.output_dir))
        kept = f"; the last good checkpoint is {last}" if last else ""
        return (
            f"{what} at step {self.state.global_step + step}: training stopped{kept}. "
            f"Lower the stage's learning_rate (now {self.args.learning_rate:g})"
        )


def per_process(count: int, name: str, because: str = "") -> int:
    """A process's share of a step's rows or problems.

    Args:
        name: the setting's, for the message; `because` ends it.

    Raises:
        TrainingError: the processes cannot share them out evenly.
    """
    from accelerate import PartialState

    processes = PartialState().num_processes
    if count % processes:
        raise TrainingError(f"{name} ({count}) must be a multiple of the number of processes ({processes}){because}")
    return count // processes


def trainer_arguments(
    settings: TrainingSettings,
    policy: "PeftModel",
    checkpoints: Path,
    *,
    rows: int,
    rows_at_once: int,
    tokens_at_once: int,
    save_multiple: int = 1,
    seed: int,
    report_to: str,
) -> dict[str, object]:
    """Arguments that TRL's configurations of all trainers have in common; the course of the learning rate is not here,
    because its settings are each trainer's own (`learning_rate_course`).

    Args:
        rows: of an optimizer step, on one process; `rows_at_once` of a batch of the trainer's, a divisor of it.
        tokens_at_once: of a forward pass, at most.
        save_multiple: checkpoints are only written after a multiple of so many steps.
        report_to: as `reporting` gives it.
    """
    cuda = torch.cuda.is_available()
    return {
        # what is learned
        "max_steps": settings.steps,
        "learning_rate": settings.learning_rate,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "seed": seed,
        "data_seed": seed,
        # how it is computed
        "per_device_train_batch_size": rows_at_once,
        "gradient_accumulation_steps": rows // rows_at_once,
        "gradient_checkpointing": checkpoints_activations(settings.gradient_checkpointing, policy, tokens_at_once),
        "bf16": arithmetic_of(policy) == torch.bfloat16,
        "use_cpu": not cuda,
        "dataloader_pin_memory": cuda,
        # what is kept and told
        "output_dir": str(checkpoints),
        "save_strategy": "steps",
        "save_steps": math.ceil(settings.save_steps / save_multiple) * save_multiple,
        "save_total_limit": 2,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": report_to,
        "disable_tqdm": True,
    }


def learning_rate_course(scheduler: str, warmup_ratio: float, steps: int) -> dict[str, object]:
    """TRL's arguments for the course of the learning rate.

    To transformers a constant rate has no warm-up, whatever is asked, and a `warmup_steps` of 1 is one step, not all.

    Args:
        scheduler: transformers' name.
        warmup_ratio: share of the steps, 0 to 1.
    """
    warms_up = scheduler == "constant" and warmup_ratio > 0
    return {
        "lr_scheduler_type": "constant_with_warmup" if warms_up else scheduler,
        "warmup_steps": math.ceil(steps * warmup_ratio),
    }


def checkpoints_activations(asked: bool | None, model: "PeftModel", tokens: int) -> bool:
    """Whether a stage with so many tokens in a forward pass uses gradient checkpointing: as asked, else where a GPU's
    memory is too small without it."""
    if asked is not None or not torch.cuda.is_available():
        return bool(asked)
    free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    config = model.config
    needed = activation_bytes(
        tokens, hidden=config.hidden_size, mlp=config.intermediate_size, layers=config.num_hidden_layers,
        number=arithmetic_of(model).itemsize, checkpointing=False,
    )  # fmt: skip
    return must_checkpoint(needed, free)


def checkpoint_at(folder: Path, step: int) -> Path:
    """Where transformers puts the checkpoint after a step."""
    return folder / f"checkpoint-{step}"


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint in a folder."""
    complete = [path.parent for path in folder.glob(f"checkpoint-*/{RECORD}")]
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


class MetricsFile(TrainerCallback):
    """Writes metrics.jsonl, one line per logged step, under the project's names; on a resume, later lines are dropped.

    Args:
        path: the file.
        names: TRL's name -> name in the file; other logged numbers keep their own.
        constants: added to every line (beta, say).
        on_step: called with the number of steps done.
    """

    def __init__(
        self,
        path: Path,
        names: Mapping[str, str],
        constants: Mapping[str, float] | None = None,
        on_step: "StepListener | None" = None,
    ) -> None:
        self._path, self._names, self._constants = path, dict(names), dict(constants or {})
        self._on_step = on_step
        self._began = time.perf_counter()

    def on_train_begin(
        self, args: "TrainingArguments", state: TrainerState, control: "TrainerControl", **_: object
    ) -> None:
        if state.is_world_process_zero:
            lines = self._path.read_text().splitlines(keepends=True) if self._path.exists() else []
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= state.global_step]
            self._path.write_text("".join(kept))
        if self._on_step:
            self._on_step(state.global_step, None)

    def on_step_begin(
        self, args: "TrainingArguments", state: TrainerState, control: "TrainerControl", **_: object
    ) -> None:
        # not from the line before: an evaluation may lie in between
        self._began = time.perf_counter()

    def on_log(
        self,
        args: "TrainingArguments",
        state: TrainerState,
        control: "TrainerControl",
        logs: Mapping[str, float] | None = None,
        **_: object,
    ) -> None:
        if not logs or "train_runtime" in logs or not state.is_world_process_zero:
            return
        line = {"step": state.global_step}
        # a mean over nothing (a step in which no completion could be graded, say) is None or NaN
        known = {name: value for name, value in logs.items() if value is not None and math.isfinite(value)}
        line |= {self._names.get(name, name): value for name, value in known.items() if name != "epoch"}
        line |= {"seconds": time.perf_counter() - self._began} | self._constants
        with self._path.open("a") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
        if self._on_step:
            self._on_step(state.global_step, line)


def reporting(report_to: str, folder: Path) -> tuple[str, list[TrainerCallback]]:
    """What TRL gets as `report_to`, and the callbacks besides.

    TensorBoard's files go to folder/tensorboard: TRL would put them among the checkpoints, which do not stay.
    """
    if report_to != "tensorboard":
        return report_to, []
    if rank() > 0:
        return "none", []
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return "none", [TensorBoardCallback(SummaryWriter(log_dir=str(folder / "tensorboard")))]


class StepListener:
    """Signature of `on_step`: steps done, and the line written (None right at the start)."""

    def __call__(self, step: int, line: Mapping[str, float] | None) -> None: ...
