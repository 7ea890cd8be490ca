"""What ours and stock TRL train beside each other, and the settings that they are tried in."""

from dataclasses import dataclass
from typing import Literal

from models.settings import Lora, Quantize

BETA = 0.01
LORA = Lora(rank=16, alpha=32.0)
KEYS = ("step", "rollout", "sync", "reward", "logprob", "optimise")


@dataclass(frozen=True)
class Case:
    """What is trained. Shape fields are of the random model; None takes embedded/student."""

    name: str
    prompts_per_step: int
    group_size: int
    max_completion_tokens: int
    learning_rate: float = 1e-4
    hidden: int | None = None
    layers: int = 8
    heads: int = 8
    kv_heads: int = 4
    mlp: int = 1408
    vocabulary: int = 4096
    mean_length: int = 128
    tied: bool = False

    @property
    def batch(self) -> int:
        """Completions of a step."""
        return self.prompts_per_step * self.group_size


@dataclass(frozen=True)
class Start:
    """The SFT policy of a finished run, from which both sides train on with the settings of one of its grpo stages.

    Fields:
        name: for people and files.
        run: the run's folder; problems, rewards, base and rollouts are its recipe's.
        sft: the stage whose policy it is.
        stage: the grpo stage.
        batch, max_completion_tokens: completions of its step, and how long they may get.
        steps: in the place of the stage's own number.
        every: the policy is kept after every so many steps, and after the last.
    """

    name: str
    run: str
    sft: str
    stage: str
    batch: int
    max_completion_tokens: int
    steps: int
    every: int

    def keeps(self, step: int) -> bool:
        """Whether the policy after this step is kept."""
        return step % self.every == 0 or step == self.steps


Job = Case | Start

CASES = {
    "student": Case("student", 32, 8, 96),
    "25m": Case("25m", 8, 8, 256, hidden=512),
    "3b": Case("3b", 8, 16, 1024, hidden=2048, layers=36, heads=16, kv_heads=2, mlp=11008, vocabulary=151936,
               mean_length=256, tied=True),
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """How a trainer runs. `micro` is completions per forward pass, None what the trainer chooses; `sync` is ours alone,
    `vllm` is stock's."""

    trainer: Literal["ours", "stock"]
    bf16: bool
    micro: int | None
    quantize: Quantize = "nf4"
    sync: Literal["folded", "adapter"] = "folded"
    vllm: bool = False
    checkpointing: bool = False

    def __str__(self) -> str:
        words = ["bf16" if self.bf16 else "fp32", f"micro-batch {self.micro or 'by tokens'}", f"base {self.quantize}"]
        words += [f"sync {self.sync}"] if self.trainer == "ours" else []
        words += ["gradient checkpointing"] if self.checkpointing else []
        return ", ".join([*words, "vLLM colocate"] if self.vllm else words)


def stock_settings(job: Job, cuda: bool, base: Quantize | None = None) -> list[Setting]:
    """Settings to try for stock TRL, whose passes must divide the batch.

    Args:
        base: the only one allowed, where the policy was trained on it before.
    """
    if cuda:
        tries = [(8, False, False), *((micro, True, again) for micro in (8, 16) for again in (False, True))]
        return [
            Setting("stock", True, _rows(job, micro), base or "nf4", vllm=vllm, checkpointing=again)
            for micro, vllm, again in tries
        ]
    sizes = [(8, base), (64, base)] if base else [(8, "nf4"), (8, "none"), (64, "none")]
    return [Setting("stock", bf16, _rows(job, micro), kind) for micro, kind in sizes for bf16 in (False, True)]


def our_settings(case: Case, cuda: bool) -> list[Setting]:
    """Settings to try for ours."""
    tries = [(True, "folded"), (True, "adapter")] if cuda else [(False, "folded"), (False, "adapter"), (True, "folded")]
    return [Setting("ours", bf16, None, sync=sync) for bf16, sync in tries]


def _rows(job: Job, limit: int) -> int:
    """The largest divisor of the batch that is not above the limit."""
    return max(rows for rows in range(1, limit + 1) if job.batch % rows == 0)
