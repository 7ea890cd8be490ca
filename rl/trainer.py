"""TRL's GRPOTrainer with our engine, reference and micro-batches.

TRL keeps: sampling order, rewards, advantages, the loss, the optimisation loop, logging. Changed here:

- completions come from the run's one engine (rl/rollouts.py), never from a merge into the trainer's base;
- log-probabilities are computed once: TRL takes a pass of its own for those that the importance weights need, but with
  one pass over a batch they are the detached ones of the training pass itself;
- the reference is scored per micro-batch, so only for rows that are in the loss and cut to their own length;
- rows without a gradient are left out (rl/batches.py), groups without one may be replaced (dynamic sampling).
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from trl import GRPOConfig, GRPOTrainer

from models.adapters import adapter_tensors
from models.base import base_sha256
from models.training import AdapterTrainer, Probe, TrainingError
from rl.batches import Batch, ProblemOrder, Row, micro_batches, rows_of
from rl.kl import Reference, k3
from rl.logprobs import completion_logprobs, install_scoring

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase, TrainerCallback

    from rewards.scoring import RewardSet
    from rl.rollouts import Rollouts


# summed over a step's micro-batches and over the processes
SUMS = (
    *("tokens", "entropy", "kl", "engine_kl", "groups", "zero_variance_groups", "masked_groups", "replaced_groups"),
    *("samples", "useful_samples", "sampled_tokens", "sampling_entropy", "resampled_groups", "resampled_tokens"),
)


@dataclass(frozen=True)
class Objective:
    """What is optimised beyond TRL's own arguments; see the recipe's keys of the same names.

    Fields:
        beta: weight of the KL penalty.
        reference: what the penalty is measured against.
        mask_zero_variance_kl: no KL gradient from groups whose rewards are all equal.
        max_resamples: rounds of fresh problems that may replace such groups; 0 is off.
    """

    beta: float
    reference: Reference
    mask_zero_variance_kl: bool = True
    max_resamples: int = 0


class PolicyTrainer(AdapterTrainer, GRPOTrainer):
    """GRPO on an adapter; see the module docstring."""

    def __init__(
        self,
        model: "PeftModel",
        args: GRPOConfig,
        objective: Objective,
        rewards: "RewardSet",
        rollouts: "Rollouts",
        dataset: "Dataset",
        tokenizer: "PreTrainedTokenizerBase",
        probe: Probe,
        callbacks: "list[TrainerCallback]",
    ) -> None:
        if args.beta != 0.0:
            raise ValueError("beta goes into Objective: TRL would add a reference of its own")
        policy = adapter_tensors(model)
        super().__init__(
            model=model,
            args=args,
            reward_funcs=list(rewards.functions),
            train_dataset=dataset,
            processing_class=tokenizer,
            callbacks=callbacks,
        )
        self.keep_float32(policy)
        install_scoring(model.get_base_model())
        self.probe = probe
        self.objective, self.rollouts = objective, rollouts
        objective.reference.install(model)
        self.beta = self.args.beta = objective.beta
        self.base_hash = base_sha256(model)
        # read by TRL at each generation; set after its __init__, which would start a vLLM of its own
        self.use_vllm, self.vllm_generation, self._last_loaded_step = True, rollouts, -1
        self._zero_variance: list[bool] = []
        self._lengths: list[int] = []
        self._current: Batch | None = None
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._drawn = 0
        self._step_start = time.perf_counter()

    # rollouts

    def _get_train_sampler(self, dataset: "Dataset | None" = None) -> ProblemOrder:
        order = super()._get_train_sampler(dataset)
        # of step and epoch only the epoch's whole part counts, and that is in a checkpoint's state
        return ProblemOrder(order, lambda: int(self.state.epoch or 0))

    def _prepare_inputs(self, generation_batch: list[dict]) -> Batch:
        every = self.args.steps_per_generation * self.num_iterations
        if self._step % every == 0 or self._buffered_inputs is None:
            rows = self._sample(generation_batch)
            tokens = torch.tensor(
                sum(len(row.completion) for row in rows if row.in_loss), device=self.accelerator.device
            )
            self._buffered_inputs = micro_batches(
                rows,
                self.args.steps_per_generation,
                loss_type=self.loss_type,
                mask_zero_variance=self.beta == 0 or self.objective.mask_zero_variance_kl,
                num_items=self.accelerator.gather(tokens).sum(),
                pad=self._tokenizer.pad_token_id,
                sizes=self._largest,
            )
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _largest(self, sizes: list[int]) -> list[int]:
        """The largest of each number over all processes."""
        return self.accelerator.gather(torch.tensor([sizes], device=self.accelerator.device)).amax(0).tolist()

    def _sample(self, inputs: list[dict]) -> list[Row]:
        """Rows of this step on this process, groups in a row; zero-variance groups replaced where that is asked for."""
        local = len(inputs) // self.num_generations
        self.rollouts.step, self.rollouts.attempt = self.state.global_step, 0
        self.rollouts.first_group = self.accelerator.process_index * local
        rows = self._scored(inputs)
        first_zero = self._count_zero(rows)
        replaced = 0
        for attempt in range(1, self.objective.max_resamples + 1):
            zero = [g for g in range(local) if rows[g * self.num_generations].zero_variance]
            counts = self.accelerator.gather(torch.tensor([len(zero)], device=self.accelerator.device)).tolist()
            if not any(counts):
                break
            # numbered over all processes, so that two of them draw what one would; every process takes part in
            # `max(counts)` groups, because scoring gathers tensors of one size
            self.rollouts.attempt = attempt
            self.rollouts.first_group = sum(counts[: self.accelerator.process_index])
            fresh = self._scored(self._fresh_problems(attempt, max(counts), sum(counts)))
            self._sums["resampled_groups"] += max(counts)
            self._sums["resampled_tokens"] += sum(len(row.completion) for row in fresh)
            for position, slot in enumerate(zero):
                group = fresh[self._group(position)]
                if not group[0].zero_variance:
                    rows[self._group(slot)] = group
                    replaced += 1
        self._sums["replaced_groups"] += replaced
        self._log_groups(rows, first_zero)
        return rows

    def _group(self, index: int) -> slice:
        return slice(index * self.num_generations, (index + 1) * self.num_generations)

    def _fresh_problems(self, attempt: int, count: int, total: int) -> list[dict]:
        """`count` of the step's `total` fresh problems, each repeated for its group: they follow from step and attempt
        alone, so that a resumed run draws the same."""
        draw = np.random.default_rng([self.args.seed, self.state.global_step, attempt])
        chosen = draw.choice(len(self.train_dataset), size=min(total, len(self.train_dataset)), replace=False)
        mine = [int(chosen[(self.rollouts.first_group + i) % len(chosen)]) for i in range(count)]
        return [self.train_dataset[i] for i in mine for _ in range(self.num_generations)]

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict]:
        # a rendered prompt holds its special tokens already; TRL would add them a second time
        return self._tokenizer(prompts, add_special_tokens=False).input_ids, None, {}

    def _scored(self, inputs: list[dict]) -> list[Row]:
        with self._scoring_only():
            batch = self._generate_and_score_completions(inputs)
        return rows_of(batch, self._lengths, self._zero_variance)

    @contextmanager
    def _scoring_only(self) -> Iterator[None]:
        """TRL samples and scores, but makes no forward pass: the reference and the importance weights come later."""
        beta, correction = self.beta, self.vllm_importance_sampling_correction
        self.beta, self.vllm_importance_sampling_correction = 0.0, False
        try:
            yield
        finally:
            self.beta, self.vllm_importance_sampling_correction = beta, correction

    def _generate_single_turn(self, *args: object, **kwargs: object) -> tuple:
        ids, logprobs = super()._generate_single_turn(*args, **kwargs)
        self._lengths = [len(row) for row in ids]
        return ids, logprobs

    def _calculate_rewards(self, inputs: list, prompts: list, completions: list, completion_ids_list: list):
        start = time.perf_counter()
        per_function = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._seconds["reward"] += time.perf_counter() - start
        total = (per_function * self.reward_weights.to(per_function.device)).nansum(dim=1)
        # an ungradable completion has no reward, and takes no part in whether its group's are all equal
        total[per_function.isnan().all(dim=1)] = torch.nan
        grouped = total.view(-1, self.num_generations)
        low, high = grouped.nan_to_num(nan=torch.inf).amin(1), grouped.nan_to_num(nan=-torch.inf).amax(1)
        equal = (high - low < 1e-6).repeat_interleave(self.num_generations)
        start = self.accelerator.process_index * len(prompts)
        self._zero_variance = equal[start : start + len(prompts)].tolist()
        return per_function

    # forward passes

    def _compute_loss(self, model: torch.nn.Module, inputs: Batch) -> torch.Tensor:
        if self.beta != 0.0 and "ref_per_token_logps" not in inputs:
            start = time.perf_counter()
            policy = self._policy()
            with torch.no_grad(), self.objective.reference.active(policy):
                inputs["ref_per_token_logps"] = completion_logprobs(model, inputs, self.temperature)[0]
            self._seconds["reference"] += time.perf_counter() - start
        self._current = inputs
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self._current = None

    def _get_per_token_logps_and_entropies(self, model: torch.nn.Module, *args: object, **kwargs: object) -> tuple:
        """For TRL's loss: the policy's log-probabilities, and from them what the loss
        reads next, those of the sampling policy and the importance weights."""
        inputs = self._current
        if inputs is None:  # with several iterations TRL asks while sampling too; the first training pass will tell
            return None, None, None
        logprobs, entropies = completion_logprobs(model, inputs, self.temperature)
        mask = inputs["completion_mask"]
        if "old_per_token_logps" not in inputs:
            old = inputs["old_per_token_logps"] = logprobs.detach()
            # truncated importance sampling: engine and trainer compute the same policy with different kernels
            log_ratio = (old - inputs["sampling_per_token_logps"]) * mask
            ratio = torch.exp(log_ratio.nan_to_num(nan=0.0)).clamp(max=self.vllm_importance_sampling_clip_max)
            inputs["importance_sampling_ratio"] = ratio
            self._sums["engine_kl"] += float((k3(inputs["sampling_per_token_logps"], old) * mask).nansum())
        with torch.no_grad():
            self._sums["tokens"] += float(mask.sum())
            self._sums["entropy"] += float((entropies * mask).sum())
            if self.beta != 0.0:
                self._sums["kl"] += float((k3(logprobs, inputs["ref_per_token_logps"]) * mask).sum())
        return logprobs, entropies, None

    # bookkeeping

    def _count_zero(self, rows: list[Row]) -> int:
        return sum(row.zero_variance for row in rows) // self.num_generations

    def _log_groups(self, rows: list[Row], first_zero: int) -> None:
        groups = len(rows) // self.num_generations
        self._sums["groups"] += groups
        self._sums["zero_variance_groups"] += first_zero
        self._sums["masked_groups"] += self._count_zero(rows)
        self._sums["samples"] += len(rows)
        self._sums["useful_samples"] += sum(row.in_loss and not row.zero_variance for row in rows)
        self._sums["sampled_tokens"] += sum(len(row.completion) for row in rows)
        self._sums["sampling_entropy"] -= sum(float(row.sampling_logprobs.sum()) for row in rows)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "train_runtime" not in logs and self.model.training:
            self._add_step_metrics()
        super().log(logs, start_time)

    def _add_step_metrics(self) -> None:
        """Replace TRL's means over micro-batches, which differ in size here, by means over tokens of the whole step."""
        names = sorted(SUMS)
        local = torch.tensor([self._sums[name] for name in names], device=self.accelerator.device)
        total = dict(zip(names, self.accelerator.reduce(local, reduction="sum").tolist(), strict=True))
        tokens, sampled = max(total["tokens"], 1.0), max(total["sampled_tokens"], 1.0)
        seconds = time.perf_counter() - self._step_start
        times = self.rollouts.times.take()
        metrics = self._metrics["train"]
        values = {
            "entropy": total["entropy"] / tokens,
            "sampling_entropy": total["sampling_entropy"] / sampled,
            "engine_kl": total["engine_kl"] / tokens,
            "engine_mismatch": self.rollouts.mismatch,
            "zero_variance_groups": total["zero_variance_groups"] / max(total["groups"], 1.0),
            "masked_groups": total["masked_groups"] / max(total["groups"], 1.0),
            "replaced_groups": total["replaced_groups"],
            # what replacing them took
            "resampled_groups": total["resampled_groups"],
            "resampled_tokens": total["resampled_tokens"],
            "useful_samples": total["useful_samples"],
            "rollout_tokens_per_second": times.tokens / max(times.generate, 1e-9),
            "tokens_per_second": sampled / seconds,
            "seconds/sync": times.sync,
            "seconds/rollout": times.generate,
            "seconds/reward": self._seconds["reward"],
            "seconds/reference": self._seconds["reference"],
        }
        # without a penalty the reference is never asked, and 0 would be a claim
        if self.beta != 0.0:
            values["kl"] = total["kl"] / tokens
        for name, value in values.items():
            metrics[name] = [value]
        self._sums.clear()
        self._seconds.clear()
        self._step_start = time.perf_counter()

    def check_frozen(self) -> None:
        """Raises TrainingError when the base or the reference is no longer what it was at the start."""
        if base_sha256(self._policy()) != self.base_hash:
            raise TrainingError("the frozen base changed while the policy was trained")
        self.objective.reference.check(self._policy())
