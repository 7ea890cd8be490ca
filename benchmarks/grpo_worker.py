"""One side of a benchmark: a trainer in a process of its own that takes a step whenever it is told to."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.grpo_cases import KEYS, Case, Setting, Start
from benchmarks.grpo_task import Task, task_of

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import TrainerCallback, TrainerState, TrainingArguments
    from trl import GRPOTrainer


class Turns:
    """Waits before each step for a line on standard input, and writes a JSON line after it to a file descriptor."""

    def __init__(self, replies: int) -> None:
        self._out = os.fdopen(replies, "w", buffering=1)
        self._start = 0.0

    def begin(self) -> None:
        self._out.write("ready\n")
        if not sys.stdin.readline():
            os._exit(0)
        self._start = time.perf_counter()

    def end(self, seconds: Mapping[str, float], *, tokens: int, samples: int, useful: int) -> None:
        """`seconds` of the step's parts: rollout, sync, reward, logprob; the rest is `optimise`."""
        import torch

        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.synchronize()
        step = time.perf_counter() - self._start
        whole = {"step": step, **seconds, "optimise": step - sum(seconds.values())}
        counts = {"tokens": tokens, "samples": samples, "useful": useful}
        peak = torch.cuda.max_memory_allocated() if cuda else _peak_rss()
        self._out.write(json.dumps({"seconds": {key: whole[key] for key in KEYS}, **counts, "peak": peak}) + "\n")


def _peak_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _ours(task: Task, folder: Path, turns: Turns) -> None:
    """The metrics of a step say what it took; unlike stock's, its time includes writing them."""
    from models.adapters import adapter_tensors
    from models.reference import Reference
    from rl.train import train_grpo

    samples = task.rollouts.prompts_per_step * task.rollouts.group_size

    def on_step(step: int, line: Mapping[str, float] | None) -> None:
        if line is not None:
            parts = {"rollout": "rollout", "sync": "sync", "reward": "reward", "logprob": "reference"}
            turns.end(
                {part: line[f"seconds/{ours}"] for part, ours in parts.items()},
                # a further iteration over the same rollouts has no tokens of its own
                tokens=round(line.get("completion_length", 0.0) * samples),
                samples=samples,
                useful=round(line["useful_samples"]),
            )
            task.keep(step)
        turns.begin()

    train_grpo(
        task.policy,
        task.tokenizer,
        task.asked,
        task.rewards,
        task.served(),
        task.settings,
        task.rollouts,
        folder,
        reference=Reference("start", adapter_tensors(task.policy)),
        seed=task.seed,
        report_to="none",
        on_step=on_step,
    )


class Clock:
    """Adds up seconds by name around wrapped functions."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def wrap(self, owner: object, attribute: str, name: str, only: Callable[[], bool] = lambda: True) -> None:
        inner = getattr(owner, attribute)

        def timed(*args: object, **kwargs: object) -> object:
            if not only():
                return inner(*args, **kwargs)
            start = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - start

        setattr(owner, attribute, timed)


def stock_trainer(task: Task, setting: Setting, folder: Path, callbacks: Sequence[TrainerCallback] = ()) -> GRPOTrainer:
    """TRL's own trainer on the task's policy, with those of the settings that TRL has.

    Raises:
        TrainingError: it does not start from the policy, or its KL penalty does not pull to it.
    """
    import torch
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from models.adapters import adapter_tensors
    from models.training import learning_rate_course

    cuda = torch.cuda.is_available()
    settings, rollouts, problems = task.settings, task.rollouts, task.asked.problems
    args = GRPOConfig(
        output_dir=str(folder), max_steps=settings.steps, learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay, max_grad_norm=settings.max_grad_norm,
        **learning_rate_course(settings.lr_scheduler_type, settings.warmup_ratio, settings.steps),
        per_device_train_batch_size=setting.micro,
        gradient_accumulation_steps=rollouts.prompts_per_step * rollouts.group_size // setting.micro,
        num_generations=rollouts.group_size, max_completion_length=rollouts.max_completion_tokens,
        temperature=rollouts.temperature, top_p=rollouts.top_p, beta=settings.beta, epsilon=settings.epsilon,
        epsilon_high=settings.epsilon_high, num_iterations=settings.num_iterations, loss_type=settings.loss_type,
        scale_rewards=settings.scale_rewards, mask_truncated_completions=settings.mask_truncated_completions,
        reward_weights=task.rewards.weights, seed=task.seed, data_seed=task.seed, bf16=setting.bf16,
        gradient_checkpointing=setting.checkpointing, logging_steps=1, report_to="none", disable_tqdm=True,
        save_strategy="no", use_cpu=not cuda, dataloader_pin_memory=cuda, use_vllm=setting.vllm,
        vllm_gpu_memory_utilization=0.35, vllm_max_model_length=rollouts.max_completion_tokens + 256,
    )  # fmt: skip
    columns = {"prompt": list(task.asked.prompts), "problem_id": [problem.id for problem in problems]}
    columns |= {name: [getattr(p, name) for p in problems] for name in ("gold", "domain", "difficulty")}
    start = adapter_tensors(task.policy)
    trainer = GRPOTrainer(
        model=task.policy, args=args, reward_funcs=list(task.rewards.functions),
        train_dataset=Dataset.from_dict(columns), processing_class=task.tokenizer, callbacks=list(callbacks),
    )  # fmt: skip
    check_stock_start(trainer.accelerator.unwrap_model(trainer.model), start, beta=settings.beta)
    return trainer


def check_stock_start(policy: PeftModel, start: Mapping[str, torch.Tensor], *, beta: float) -> None:
    """With a 4-bit base TRL rounds the policy's adapter to bfloat16; nothing else may have happened to it, and with a
    penalty the reference, TRL's copy of it, must be the same policy.

    Raises:
        TrainingError: otherwise.
    """
    import torch

    from models.adapters import POLICY, adapter_tensors
    from models.training import TrainingError
    from rl.trainer import TRL_REFERENCE

    for name in (POLICY, TRL_REFERENCE) if beta else (POLICY,):
        own = adapter_tensors(policy, name)
        if own.keys() != start.keys() or not all(torch.equal(own[key], start[key].to(own[key].dtype)) for key in own):
            raise TrainingError(f"stock TRL's adapter {name!r} is not the policy that it was given")


def _stock(task: Task, setting: Setting, folder: Path, turns: Turns) -> None:
    import torch
    from transformers import TrainerCallback

    clock, counts = Clock(), dict.fromkeys(("tokens", "samples", "useful"), 0)

    class Steps(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            turns.begin()
            clock.seconds.clear()
            counts.update(tokens=0, samples=0, useful=0)

        def on_step_end(self, args: TrainingArguments, state: TrainerState, *_: object, **__: object) -> None:
            seconds = {part: clock.seconds[part] for part in ("rollout", "sync", "reward", "logprob")}
            # TRL syncs within its generation
            seconds["rollout"] -= seconds["sync"]
            turns.end(seconds, **counts)
            task.keep(state.global_step)

    trainer = stock_trainer(task, setting, folder, [Steps()])
    generate, score = trainer._generate_single_turn, trainer._generate_and_score_completions

    def generated(*given: object, **named: object) -> tuple:
        ids, logprobs = generate(*given, **named)
        counts["tokens"] += sum(map(len, ids))
        counts["samples"] += len(ids)
        return ids, logprobs

    def scored(inputs: list) -> dict:
        output = score(inputs)
        counts["useful"] += int((output["advantages"].abs() > 0.01).sum())
        return output

    trainer._generate_single_turn, trainer._generate_and_score_completions = generated, scored
    clock.wrap(trainer, "_generate_single_turn", "rollout")
    clock.wrap(trainer, "_calculate_rewards", "reward")
    clock.wrap(trainer, "_get_per_token_logps_and_entropies", "logprob", lambda: not torch.is_grad_enabled())
    if setting.vllm:
        clock.wrap(trainer.vllm_generation, "sync_weights", "sync")
    trainer.train()
    # the last step is over; what is asked next is the end
    turns.begin()


JOBS = {kind.__name__: kind for kind in (Case, Start)}


def main(kind: str, job: str, setting: str, folder: str, replies: str) -> None:
    """Train; see `Turns`."""
    chosen = Setting(**json.loads(setting))
    own = Path(folder) / chosen.trainer
    own.mkdir(exist_ok=True)
    task = task_of(JOBS[kind](**json.loads(job)), chosen, own)
    turns = Turns(int(replies))
    if chosen.trainer == "ours":
        _ours(task, own, turns)
    else:
        _stock(task, chosen, own, turns)


if __name__ == "__main__":
    main(*sys.argv[1:])
