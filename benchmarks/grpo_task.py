"""What a worker (benchmarks/grpo_worker.py) trains: a policy, and its problems, rewards and settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.grpo_cases import BETA, LORA, Case, Job, Setting, Start

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from models.engines.serving import Served
    from orchestra.config.recipe import Recipe
    from rewards.problems import Asked
    from rewards.scoring import RewardSet
    from rl.settings import GrpoSettings, Rollouts

ENDLESS = 10**6


@dataclass(frozen=True)
class Task:
    """What is trained.

    Fields:
        policy: where both sides start.
        settings, rollouts: as ours takes them; stock gets those that TRL has.
        served: starts the engine of ours.
        keep: called with the number of steps taken, off the clock.
    """

    policy: PeftModel
    tokenizer: PreTrainedTokenizerBase
    asked: Asked
    rewards: RewardSet
    settings: GrpoSettings
    rollouts: Rollouts
    seed: int
    served: Callable[[], Served]
    keep: Callable[[int], None]


def task_of(job: Job, setting: Setting, folder: Path) -> Task:
    """Load what the job names; `folder` is the side's own."""
    return _of_run(job, setting, folder) if isinstance(job, Start) else _of_case(job, setting, folder)


def kept(folder: Path, step: int) -> Path:
    """Where the policy after this step is kept."""
    return folder / f"step-{step:05}"


def recipe_of(run: Path) -> Recipe:
    """A run's recipe, scale and overrides applied."""
    from orchestra.config.recipe import Recipe
    from orchestra.run.folder import read_json

    return Recipe.model_validate(read_json(run / "run.json")["recipe"])


def start_policy(start: Start) -> PeftModel:
    """The SFT policy on the base that it was trained on.

    Raises:
        TrainingError: the base is another now.
    """
    from models.adapters import load_adapter
    from models.base import base_sha256, load_base
    from models.training import TrainingError
    from orchestra.run.ledger import Ledger
    from orchestra.work.context import ADAPTER

    run = Path(start.run)
    model, entry = recipe_of(run).model, Ledger(run).entries[start.sft]
    base = load_base(model.base, model.quantize, model.dtype)
    if base_sha256(base) != entry.result.extra["base_sha256"]:
        raise TrainingError(f"{run}: the base {model.base!r} is not the one that stage {start.sft!r} was trained on")
    return load_adapter(base, run / entry.folder / ADAPTER)


def _of_run(start: Start, setting: Setting, folder: Path) -> Task:
    import torch

    from models.adapters import save_adapter
    from models.base import to_arithmetic
    from orchestra.work.resources import Resources, stage_seed

    recipe = recipe_of(Path(start.run))
    stage, resources = recipe.stage(start.stage), Resources(recipe)
    rollouts = recipe.rollouts.overridden_by(stage)
    policy = start_policy(start)
    to_arithmetic(policy.get_base_model(), torch.bfloat16 if setting.bf16 else torch.float32)

    def keep(step: int) -> None:
        if start.keeps(step):
            save_adapter(policy, kept(folder, step))

    # the only reference that stock TRL has for a policy given to it
    changed = {"steps": start.steps, "save_steps": ENDLESS, "micro_batch_size": setting.micro, "reference": "start"}
    return Task(
        policy,
        resources.tokenizer(),
        resources.train(),
        resources.domain.rewards(recipe.reward, resources.format, rollouts.max_completion_tokens),
        stage.model_copy(update=changed),
        rollouts,
        stage_seed(recipe, stage.name),
        resources.served,
        keep,
    )


def _of_case(case: Case, setting: Setting, folder: Path) -> Task:
    """Problems, prompts and rewards: the recipe's for the student, the same prompts with a cheap reward elsewhere."""
    from models.adapters import new_adapter
    from models.base import load_base, load_tokenizer
    from models.engines.serving import Served
    from models.engines.start import Capacity, start_engine
    from models.prompts import prompt_tokens, render_prompt
    from models.training import Probe
    from rewards.domain import get_domain
    from rewards.problems import Asked
    from rewards.scoring import RewardSet
    from rewards.settings import Reward
    from rl.settings import GrpoSettings, Rollouts

    name = model_name(case, folder.parent)
    policy = new_adapter(load_base(name, setting.quantize, "bfloat16" if setting.bf16 else "float32"), LORA, seed=1)
    tokenizer = load_tokenizer(name)
    domain = get_domain("math")
    format = domain.format("think-boxed")
    problems = domain.problems("embedded", "train", limit=1024, seed=3)
    prompts = tuple(render_prompt(tokenizer, format.messages(one.question)) for one in problems)
    tokens = tuple(tuple(prompt_tokens(tokenizer, prompt)) for prompt in prompts)
    if case.hidden is None:
        rewards = domain.rewards(Reward(correct=1.0, format=0.1), format, case.max_completion_tokens)
    else:
        rewards = RewardSet([_parity], ["parity"], [1.0])
    rollouts = Rollouts(
        engine="vllm", sync=setting.sync, dtype="bfloat16" if setting.bf16 else "float32", gpu_memory_utilization=0.4,
        prompts_per_step=case.prompts_per_step, group_size=case.group_size,
        max_completion_tokens=case.max_completion_tokens,
    )  # fmt: skip
    room = Capacity(
        max_model_len=case.max_completion_tokens + 256, lora_rank=LORA.rank if setting.sync == "adapter" else 0
    )
    settings = GrpoSettings(
        steps=ENDLESS, learning_rate=case.learning_rate, beta=BETA, micro_batch_size=setting.micro, save_steps=ENDLESS,
        mask_truncated_completions=False,
    )  # fmt: skip
    return Task(
        policy,
        tokenizer,
        Asked(tuple(problems), prompts, tokens),
        rewards,
        settings,
        rollouts,
        seed=0,
        served=lambda: Served(start_engine(name, rollouts, room), setting.sync, Probe.of_prompts(tokens)),
        keep=lambda step: None,
    )


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
