"""The engine: what generates completions, one per base and kept for the whole run.

Two kinds answer to one protocol: vLLM, and plain transformers where vLLM is not installed. Both hold their own copy of
the base and take a policy in one of two ways: `sync_folded` (weights with the adapter folded in) or `sync_adapter` (the
adapter alone). Neither touches the trainer's tensors.

Nothing in the protocol needs the engine to be in this process, or on this machine: weights are announced by name, shape
and dtype before the first of them is made, and an adapter is the contents of its files, not a folder.

Rollouts are reproducible: every prompt has its own seed, the prefix cache starts empty at each call, and so a call's
completions follow from weights, prompts and seeds alone, also after a resume (on a CPU; GPU kernels may round otherwise
in another batch).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import torch

Tokens = Sequence[int]
ADAPTER_CONFIG, ADAPTER_TENSORS = "adapter_config.json", "adapter_model.safetensors"
NOT_PLAIN = ("alpha_pattern", "bias", "fan_in_fan_out", "modules_to_save", "rank_pattern", "use_dora", "use_rslora")
"""Settings of PEFT's with which the update is another than (alpha / rank) B A."""
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""For which vLLM makes room (`max_lora_rank`)."""


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn: penalties, temperature, min_p, top_k, renormalised, top_p, in this order (vLLM's).

    `temperature=0` is greedy, to which only penalties matter; `top_k=0` is off, and so is what is None; `n` completions
    per prompt.
    """

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    n: int = 1
    logprobs: bool = False
    stop_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Completion:
    """One completion: its tokens (the end token included), text without special tokens, and why it ended.

    `logprobs` are of the sampled tokens in nats, after temperature and truncation, as they were drawn.
    """

    token_ids: list[int]
    text: str
    finish: Literal["stop", "length"]
    logprobs: list[float] | None = None


@dataclass(frozen=True)
class Weight:
    """One tensor, announced before it is made.

    Fields:
        name: in the base's own checkpoint.
        make: computes a new tensor of this shape and dtype from whatever it is made of, as that is then.
    """

    name: str
    shape: tuple[int, ...]
    dtype: "torch.dtype"
    make: Callable[[], "torch.Tensor"]


@dataclass(frozen=True)
class Weights:
    """Tensors for an engine: all announced at once, made one at a time, and anew whenever they are gone through."""

    announced: tuple[Weight, ...]

    def __iter__(self) -> "Iterator[tuple[str, torch.Tensor]]":
        return ((weight.name, weight.make()) for weight in self.announced)


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter as the contents of its PEFT folder's two files."""

    config: bytes
    tensors: bytes

    def write(self, folder: Path) -> None:
        """Make a folder that PEFT and vLLM read."""
        (folder / ADAPTER_CONFIG).write_bytes(self.config)
        (folder / ADAPTER_TENSORS).write_bytes(self.tensors)


class EngineError(RuntimeError):
    """The engine failed to start or serves something else than it was given."""

    user_message = True


class Generator(Protocol):
    """What answers. `seeds`: one per prompt; completion k of a prompt draws from seed + k."""

    def generate(
        self,
        prompts: Sequence[Tokens],
        sampling: Sampling,
        seeds: Sequence[int] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]: ...


class Engine(Generator, Protocol):
    """What a stage needs of an engine."""

    kind: str
    dtype: "torch.dtype"
    serves_adapters: bool

    def score(self, prompts: Sequence[Tokens], completions: Sequence[Tokens]) -> list[list[float]]:
        """Log-probability in nats of each completion token under the weights now served, at temperature 1."""
        ...

    def sync_folded(self, weights: Weights) -> None:
        """Serve these weights from now on; all of them have been made when this returns."""
        ...

    def sync_adapter(self, adapter: AdapterFiles | None) -> None:
        """Serve this adapter, or none, on the weights synced last from now on. The engine decides where its files are
        kept."""
        ...

    def rest(self) -> None:
        """Give memory back while the process goes on; nothing is asked of this engine again."""
        ...

    def close(self) -> None:
        """The last call, when the process is about to end."""
        ...


class PanelEngine(Engine, Protocol):
    """An engine that holds several adapters at once, each request under its own (vLLM's LoRA requests)."""

    def sync_panel(self, adapters: Mapping[str, Path]) -> None:
        """Have these adapters ready, each in a PEFT folder that stays, by name; for `generate_routed`."""
        ...

    def generate_routed(
        self,
        prompts: Sequence[Tokens],
        experts: Sequence[str | None],
        sampling: Sampling,
        seeds: Sequence[int] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        """As `generate`, each prompt in the same batch under its own adapter of `sync_panel`, or under none."""
        ...

    def score_routed(
        self, prompts: Sequence[Tokens], completions: Sequence[Tokens], expert: str | None
    ) -> list[list[float]]:
        """As `score`, under one adapter of `sync_panel`, or under none."""
        ...


def last_line(error: Exception) -> str:
    """An exception's kind and the last line of its message."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"
