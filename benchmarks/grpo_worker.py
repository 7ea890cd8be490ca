"""One side of benchmarks/grpo_step.py: a trainer in a process of its own that takes a step whenever it is told to."""

import json
import os
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.grpo_cases import BETA, KEYS, LORA, Case, Setting


class Clock:
    """Adds up seconds by name around wrapped functions."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def wrap(self, owner: object, attribute: str, name: str, only: Callable[[], bool] = lambda: True) -> None:
        inner = getattr(owner, attribute)

        def timed(*args: object, **kwargs: object) -> object:
            if not only():
                return inner(*args, **kwargs)
            with self.of(name):
                return inner(*args, **kwargs)

        setattr(owner, attribute, timed)


def worker(case: Case, setting: Setting, folder: Path, replies: int) -> None:
    """Train; before each step wait for a line on standard input, after it write a JSON line to the file descriptor."""
    import torch
    from transformers import TrainerCallback

    clock = Clock()
    counts = {"tokens": 0, "samples": 0, "useful": 0}
    out = os.fdopen(replies, "w", buffering=1)

    class Turns(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            out.write("ready\n")
            if not sys.stdin.readline():
                os._exit(0)
            clock.seconds.clear()
            counts.update(tokens=0, samples=0, useful=0)
            self.start = time.perf_counter()

        def on_step_end(self, *_: object, **__: object) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds = {key: clock.seconds[key] for key in KEYS}
            seconds["step"] = time.perf_counter() - self.start
            seconds["rollout"] -= seconds["sync"]
            seconds["optimise"] = seconds["step"] - sum(seconds[k] for k in ("rollout", "sync", "reward", "logprob"))
            cuda = torch.cuda.is_available()
            peak = torch.cuda.max_memory_allocated() if cuda else _peak_rss()
            out.write(json.dumps({"seconds": seconds, **counts, "peak": peak}) + "\n")

    trainer = (_ours if setting.trainer == "ours" else _stock)(case, setting, folder, Turns(), clock, counts)
    inner = trainer._generate_single_turn

    def rollout(*args: object, **kwargs: object) -> object:
        with clock.of("rollout"):
            ids, logprobs = inner(*args, **kwargs)
        counts["tokens"] += sum(map(len, ids))
        counts["samples"] += len(ids)
        return ids, logprobs

    trainer._generate_single_turn = rollout
    clock.wrap(trainer, "_calculate_rewards", "reward")
    trainer.train()


def _peak_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _model(case: Case, setting: Setting, folder: Path):
    from models.adapters import new_adapter
    from models.base import load_base, load_tokenizer

    name = model_name(case, folder)
    base = load_base(name, setting.quantize, "bfloat16" if setting.bf16 else "float32")
    return name, new_adapter(base, LORA, seed=1), load_tokenizer(name)


def model_name(case: Case, folder: Path) -> str:
    """Name or folder of the case's model, made when it is not there."""
    if case.hidden is None:
        return "embedded/student"
    path = folder / case.name
    if path.is_dir():
        return str(path)
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from models.base import load_tokenizer

    torch.manual_seed(0)
    tokenizer = load_tokenizer("embedded/student")
    ends = case.vocabulary // case.mean_length
    eos = [tokenizer.eos_token_id, *range(case.vocabulary - ends + 1, case.vocabulary)]
    config = Qwen2Config(
        vocab_size=case.vocabulary, hidden_size=case.hidden, num_hidden_layers=case.layers,
        num_attention_heads=case.heads, num_key_value_heads=case.kv_heads, intermediate_size=case.mlp,
        max_position_embeddings=2048, tie_word_embeddings=case.tied, eos_token_id=eos,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=None, initializer_range=0.01,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    model.generation_config.eos_token_id = eos
    model.to(torch.bfloat16).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def _parity(completion_ids: Sequence[Sequence[int]], **_: object) -> list[float]:
    return [float(sum(ids) % 2) for ids in completion_ids]


def _task(case: Case, tokenizer):
    """Problems, prompts and rewards: the recipe's for the student, the same prompts with a cheap reward elsewhere."""
    from models.prompts import render_prompt
    from rewards.domain import get_domain
    from rewards.scoring import RewardSet
    from rewards.settings import Reward

    domain = get_domain("math")
    format = domain.format("think-boxed")
    problems = domain.problems("embedded", "train", limit=1024, seed=3)
    prompts = [render_prompt(tokenizer, format.messages(one.question)) for one in problems]
    if case.hidden is None:
        rewards = domain.rewards(Reward(correct=1.0, format=0.1), format, case.max_completion_tokens)
    else:
        rewards = RewardSet([_parity], ["parity"], [1.0])
    return problems, prompts, rewards


def _ours(case: Case, setting: Setting, folder: Path, turns, clock: Clock, counts: dict[str, int]):
    import torch

    import rl.trainer
    from models.adapters import adapter_tensors
    from models.engines.start import Capacity, start_engine
    from models.settings import Serving
    from rl.kl import Reference
    from rl.train import GrpoSettings, build_trainer
    from rl.trainer import Objective

    name, model, tokenizer = _model(case, setting, folder)
    problems, prompts, rewards = _task(case, tokenizer)
    engine = start_engine(
        name,
        Serving(engine="vllm", dtype="bfloat16" if setting.bf16 else "float32", gpu_memory_utilization=0.4),
        Capacity(
            max_model_len=case.max_completion_tokens + 256,
            lora_rank=LORA.rank if setting.sync == "adapter" else 0,
        ),
    )
    objective = Objective(BETA, Reference("start", adapter_tensors(model)))
    settings = GrpoSettings(
        steps=10**6, learning_rate=case.learning_rate, prompts_per_step=case.prompts_per_step,
        group_size=case.group_size, max_completion_tokens=case.max_completion_tokens, micro_batch_size=setting.micro,
        save_steps=10**6, sync=setting.sync, mask_truncated_completions=False,
    )  # fmt: skip
    trainer = build_trainer(
        model, tokenizer, engine, problems, prompts, rewards, objective, settings, folder / "ours", [turns]
    )
    clock.wrap(trainer.rollouts, "sync_weights", "sync")
    clock.wrap(rl.trainer, "completion_logprobs", "logprob", lambda: not torch.is_grad_enabled())
    sample = trainer._sample

    def counted(inputs: list) -> list:
        rows = sample(inputs)
        counts["useful"] += sum(not row.zero_variance for row in rows)
        return rows

    trainer._sample = counted
    return trainer


def _stock(case: Case, setting: Setting, folder: Path, turns, clock: Clock, counts: dict[str, int]):
    import torch
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    _, model, tokenizer = _model(case, setting, folder)
    problems, prompts, rewards = _task(case, tokenizer)
    cuda = torch.cuda.is_available()
    batch = case.prompts_per_step * case.group_size
    args = GRPOConfig(
        output_dir=str(folder / "stock"), max_steps=10**6, learning_rate=case.learning_rate,
        lr_scheduler_type="constant", per_device_train_batch_size=setting.micro,
        gradient_accumulation_steps=batch // setting.micro, num_generations=case.group_size,
        max_completion_length=case.max_completion_tokens, beta=BETA, epsilon_high=0.28, bf16=setting.bf16,
        gradient_checkpointing=setting.checkpointing, logging_steps=1, report_to="none", disable_tqdm=True,
        save_strategy="no",
        use_cpu=not cuda, dataloader_pin_memory=cuda, reward_weights=rewards.weights, use_vllm=setting.vllm,
        vllm_gpu_memory_utilization=0.35, vllm_max_model_length=case.max_completion_tokens + 256,
    )  # fmt: skip
    dataset = Dataset.from_dict(
        {"prompt": prompts, "gold": [p.gold for p in problems], "problem_id": [p.id for p in problems]}
    )
    trainer = GRPOTrainer(
        model=model, args=args, reward_funcs=list(rewards.functions), train_dataset=dataset,
        processing_class=tokenizer, callbacks=[turns],
    )  # fmt: skip
    clock.wrap(trainer, "_get_per_token_logps_and_entropies", "logprob", lambda: not torch.is_grad_enabled())
    if setting.vllm:
        clock.wrap(trainer.vllm_generation, "sync_weights", "sync")
    score = trainer._generate_and_score_completions

    def counted(inputs: list) -> dict:
        output = score(inputs)
        counts["useful"] += int((output["advantages"].abs() > 0.01).sum())
        return output

    trainer._generate_and_score_completions = counted
    return trainer


if __name__ == "__main__":
    worker(Case(**json.loads(sys.argv[1])), Setting(**json.loads(sys.argv[2])), Path(sys.argv[3]), int(sys.argv[4]))
