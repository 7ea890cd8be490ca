"""One side of benchmarks/grpo_step.py: a trainer in a process of its own that takes a step whenever it is told to."""

import json
import os
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.grpo_cases import BETA, KEYS, LORA, Case, Setting


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


def _ours(case: Case, setting: Setting, folder: Path, turns: Turns) -> None:
    """The metrics of a step say what it took; unlike stock's, its time includes writing them."""
    from models.adapters import adapter_tensors
    from models.engines.serving import Served
    from models.engines.start import Capacity, start_engine
    from models.prompts import prompt_tokens
    from models.reference import Reference
    from models.training import Probe
    from rewards.problems import Asked
    from rl.settings import GrpoSettings, Rollouts
    from rl.train import train_grpo

    name, model, tokenizer = _model(case, setting, folder)
    problems, prompts, rewards = _task(case, tokenizer)
    tokens = tuple(tuple(prompt_tokens(tokenizer, prompt)) for prompt in prompts)
    rollouts = Rollouts(
        engine="vllm", sync=setting.sync, dtype="bfloat16" if setting.bf16 else "float32", gpu_memory_utilization=0.4,
        prompts_per_step=case.prompts_per_step, group_size=case.group_size,
        max_completion_tokens=case.max_completion_tokens,
    )  # fmt: skip
    room = Capacity(
        max_model_len=case.max_completion_tokens + 256, lora_rank=LORA.rank if setting.sync == "adapter" else 0
    )
    settings = GrpoSettings(
        steps=10**6, learning_rate=case.learning_rate, beta=BETA, micro_batch_size=setting.micro, save_steps=10**6,
        mask_truncated_completions=False,
    )  # fmt: skip
    samples = case.prompts_per_step * case.group_size

    def on_step(step: int, line: Mapping[str, float] | None) -> None:
        if line is not None:
            parts = {"rollout": "rollout", "sync": "sync", "reward": "reward", "logprob": "reference"}
            turns.end(
                {part: line[f"seconds/{ours}"] for part, ours in parts.items()},
                tokens=round(line["completion_length"] * samples),
                samples=samples,
                useful=round(line["useful_samples"]),
            )
        turns.begin()

    (folder / "ours").mkdir(exist_ok=True)
    train_grpo(
        model,
        tokenizer,
        Asked(tuple(problems), tuple(prompts), tokens),
        rewards,
        Served(start_engine(name, rollouts, room), setting.sync, Probe.of_prompts(tokens)),
        settings,
        rollouts,
        folder / "ours",
        reference=Reference("start", adapter_tensors(model)),
        seed=0,
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


def _stock(case: Case, setting: Setting, folder: Path, turns: Turns) -> None:
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    _, model, tokenizer = _model(case, setting, folder)
    problems, prompts, rewards = _task(case, tokenizer)
    cuda = torch.cuda.is_available()
    batch = case.prompts_per_step * case.group_size
    clock, counts = Clock(), dict.fromkeys(("tokens", "samples", "useful"), 0)

    class Steps(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            turns.begin()
            clock.seconds.clear()
            counts.update(tokens=0, samples=0, useful=0)

        def on_step_end(self, *_: object, **__: object) -> None:
            seconds = {part: clock.seconds[part] for part in ("rollout", "sync", "reward", "logprob")}
            # TRL syncs within its generation
            seconds["rollout"] -= seconds["sync"]
            turns.end(seconds, **counts)

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
        processing_class=tokenizer, callbacks=[Steps()],
    )  # fmt: skip
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


def main(case: str, setting: str, folder: str, replies: str) -> None:
    """Train; see `Turns`."""
    chosen = Setting(**json.loads(setting))
    train = _ours if chosen.trainer == "ours" else _stock
    train(Case(**json.loads(case)), chosen, Path(folder), Turns(int(replies)))


if __name__ == "__main__":
    main(*sys.argv[1:])
