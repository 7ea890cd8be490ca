"""TRL's GRPOTrainer for the loss and the optimisation loop; what is trained on, and what it is compared with, is ours.

- A step's rows come from rl/rollouts.py: TRL would merge into the trainer's base to serve the policy, which drifts in
  4-bit, and knows neither seeds per group nor dynamic sampling.
- Rows without a gradient are left out, the rest is cut by length (rl/batches.py). What TRL's loop takes for a batch is
  all of a step's rows, so that as many passes are made over them as they need.
- Log-probabilities are computed once: TRL takes a pass of its own for those that the importance weights need, but they
  are the detached ones of the first training pass over a batch.
- The reference is scored per micro-batch, so only for rows that are in the loss and cut to their own length.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from trl import GRPOConfig, GRPOTrainer

from models.adapters import adapter_tensors
from models.base import base_sha256
from models.engines.serving import Served
from models.reference import Reference
from models.training import AdapterTrainer, TrainingError, without_dropout
from rl.batches import Batch, micro_batches
from rl.kl import k3
from rl.logprobs import check_scoring, completion_logprobs, importance_weights, install_scoring
from rl.metrics import StepMetrics
from rl.rollouts import Problem, ProblemOrder, RowSource
from rl.settings import GrpoSettings, Rollouts

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase, TrainerCallback

    from rewards.scoring import RewardSet

# TRL's name for the copy of the policy that it makes as its own reference
TRL_REFERENCE = "ref"
# nats a token; the two are computed alike, so that rounding is far below
START_KL = 1e-3


@dataclass(frozen=True)
class Scored:
    """A micro-batch's log-probabilities and entropies under the policy, each B x C, in nats."""

    logprobs: torch.Tensor
    entropies: torch.Tensor


class PolicyTrainer(AdapterTrainer, GRPOTrainer):
    """GRPO on an adapter; see the module docstring.

    Args:
        args: what TRL's loop and loss take; `rl/train.py` makes it from settings and rollouts.
        reference: what the KL penalty is measured against.
        dataset: `prompt`, `prompt_ids` and the columns that reward functions get.
        tokens_at_once: of a forward pass, padding included.
    """

    def __init__(
        self,
        model: "PeftModel",
        args: GRPOConfig,
        settings: GrpoSettings,
        rollouts: Rollouts,
        *,
        reference: Reference,
        rewards: "RewardSet",
        served: Served,
        dataset: "Dataset",
        tokens_at_once: int,
        tokenizer: "PreTrainedTokenizerBase",
        callbacks: "list[TrainerCallback]",
    ) -> None:
        policy = adapter_tensors(model)
        super().__init__(
            model=model,
            args=args,
            reward_funcs=list(rewards.functions),
            train_dataset=dataset,
            processing_class=tokenizer,
            callbacks=callbacks,
        )
        # with a penalty and a PeftModel TRL copies the policy as its reference; the stage names its own
        if TRL_REFERENCE in model.peft_config:
            model.delete_adapter(TRL_REFERENCE)
        self.keep_float32(policy)
        install_scoring(model.get_base_model())
        reference.install(model)
        # TRL's loss multiplies by `importance_sampling_ratio` where completions come from another engine, which it
        # calls vLLM; given as an argument, it would start one of its own
        self.use_vllm = True
        self.probe = served.probe
        check_scoring(model, self.probe)
        self.base_hash = base_sha256(model)
        self._settings, self._reference, self._served = settings, reference, served
        self._tokens_at_once = tokens_at_once
        self._told = StepMetrics(self.accelerator, rewards.names, settings.scale_rewards)
        self._source = RowSource(
            served,
            dataset,
            rewards,
            settings,
            rollouts,
            stop_token_ids=tuple(sorted(set(self.eos_token_ids) - {None})),
            pad_token_id=tokenizer.pad_token_id,
            seed=args.seed,
            accelerator=self.accelerator,
            metrics=self._told,
        )
        self._batches: list[Batch] = []
        self._mismatch = served.mismatch

    # what is trained on

    def _get_train_sampler(self, dataset: "Dataset | None" = None) -> ProblemOrder:
        order = super()._get_train_sampler(dataset)
        # of step and epoch only the epoch's whole part counts, and that is in a checkpoint's state
        return ProblemOrder(order, lambda: int(self.state.epoch or 0))

    def training_step(self, model: torch.nn.Module, inputs: list[Problem], *args: object) -> torch.Tensor:
        """All passes of an optimizer step; the gradients of several processes are put together in the last.

        Args:
            inputs: this process's problems of the step, each repeated for its group.
        """
        self._told.begin()
        if self.state.global_step % self.num_iterations == 0:
            self._batches = self._sampled(inputs[:: self.num_generations])
        *others, last = self._batches
        loss = torch.zeros((), device=self.accelerator.device)
        for batch in others:
            with self.accelerator.no_sync(model):
                loss += super().training_step(model, batch, *args)
        return loss + super().training_step(model, last, *args)

    def _prepare_inputs(self, batch: Batch) -> Batch:
        """TRL would sample here."""
        return batch

    def _sampled(self, problems: list[Problem]) -> list[Batch]:
        """The micro-batches of a step, from completions that are sampled now."""
        rows, tokens = self._source.rows(self._policy(), problems, self.state)
        # when it sampled; in between it may be asked, and is then compared with a policy that is further on
        self._mismatch = self._served.mismatch
        self.state.num_input_tokens_seen += tokens
        self._told.counted("num_tokens", self.state.num_input_tokens_seen)
        in_loss = torch.tensor(sum(len(row.completion) for row in rows if row.in_loss), device=self.accelerator.device)
        return micro_batches(
            rows,
            self._tokens_at_once,
            loss_type=self.loss_type,
            mask_zero_variance=self.beta == 0.0 or self._settings.mask_zero_variance_kl,
            num_items=self.accelerator.gather(in_loss).sum(),
            pad=self._tokenizer.pad_token_id,
            longest=self._largest,
        )

    def _largest(self, numbers: list[int]) -> list[int]:
        """The largest of each number over all processes."""
        return self.accelerator.gather(torch.tensor([numbers], device=self.accelerator.device)).amax(0).tolist()

    # the loss

    def _compute_loss(self, model: torch.nn.Module, inputs: Batch) -> torch.Tensor:
        """TRL's loss of a micro-batch of B rows, cut to C completion tokens.

        The first pass over it adds what stays as it is in further iterations (each B x C, in nats but for the ratio):
        the reference's log-probabilities, those of the policy that sampled, and the importance weights.
        """
        mask = inputs["completion_mask"]
        first_pass = "old_per_token_logps" not in inputs
        if first_pass and self.beta != 0.0:
            with self._told.timed("reference"), torch.no_grad(), self._reference.active(self._policy()):
                inputs["ref_per_token_logps"] = completion_logprobs(model, inputs, self.temperature)[0]
            if self._settings.reference == "start" and self.state.global_step == 0 and inputs is self._batches[0]:
                self._check_start(model, inputs)
        scored = Scored(*completion_logprobs(model, inputs, self.temperature))
        if first_pass:
            trainer, engine = scored.logprobs.detach(), inputs["sampling_per_token_logps"]
            inputs["old_per_token_logps"] = trainer
            inputs["importance_sampling_ratio"] = importance_weights(
                trainer, engine, mask, largest=self.vllm_importance_sampling_clip_max
            )
            self._told.add("engine_kl", float((k3(engine, trainer) * mask).nansum()))
        with torch.no_grad():
            self._told.add("tokens", float(mask.sum()))
            self._told.add("entropy", float((scored.entropies * mask).sum()))
            self._told.add("clipped", float((self._clipped(scored, inputs) * mask).sum()))
            if self.beta != 0.0:
                self._told.add("kl", float((k3(scored.logprobs, inputs["ref_per_token_logps"]) * mask).sum()))
        # in the model's place: all that TRL's loss asks of it is the next method
        return super()._compute_loss(scored, inputs) * inputs["share"]

    def _clipped(self, scored: Scored, inputs: Batch) -> torch.Tensor:
        """clipped_BC (bool): tokens whose ratio is beyond the bound that their advantage pushes it over."""
        ratio_BC = torch.exp(scored.logprobs - inputs["old_per_token_logps"])
        advantages_B1 = inputs["advantages"][:, None]
        too_low = (ratio_BC < 1 - self._settings.epsilon) & (advantages_B1 < 0)
        return too_low | ((ratio_BC > 1 + self._settings.epsilon_high) & (advantages_B1 > 0))

    @torch.no_grad()
    def _check_start(self, model: torch.nn.Module, inputs: Batch) -> None:
        """Before the first step the policy is the stage's start, dropout aside, or the reference is another's."""
        with without_dropout(self._policy()):
            policy = completion_logprobs(model, inputs, self.temperature)[0]
        mask = inputs["completion_mask"]
        kl = float((k3(policy, inputs["ref_per_token_logps"]) * mask).sum() / mask.sum().clamp(min=1))
        if not abs(kl) <= START_KL:
            raise TrainingError(
                f"KL to the stage's own start is {kl:.2g} before the first step; it must be 0, "
                "so the reference is wrong"
            )

    def _get_per_token_logps_and_entropies(self, model: Scored, *_: object, **__: object) -> tuple:
        """For TRL's loss, which is given what `_compute_loss` has computed."""
        return model.logprobs, model.entropies, None

    # bookkeeping

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "train_runtime" not in logs and self.model.training:
            told = self._told.take(engine_mismatch=self._mismatch, with_kl=self.beta != 0.0)
            self._metrics["train"].update({name: [value] for name, value in told.items()})
            # to TRL each pass is a step
            self._metrics["train"].pop("step_time", None)
        super().log(logs, start_time)

    def check_frozen(self) -> None:
        """Raises TrainingError when the base or the reference is no longer what it was at the start."""
        if base_sha256(self._policy()) != self.base_hash:
            raise TrainingError("the frozen base changed while the policy was trained")
        self._reference.check(self._policy())
