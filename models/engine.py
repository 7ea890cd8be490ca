"""The engine: what generates completions, one per base and kept for the whole run.

Two kinds answer to one protocol: vLLM, and plain transformers where vLLM is not installed. Both hold their own copy of
the base and take a policy in one of two ways: `sync_folded` (weights with the adapter folded in, pushed through vLLM's
own weight reload) or `sync_adapter` (the adapter alone, under a fresh name and id, because a reloaded adapter of the
same id may be served from the prefix cache; vllm#42125). Neither touches the trainer's tensors.

Rollouts are reproducible: every prompt has its own seed, the prefix cache starts empty at each call, and so a call's
completions follow from weights, prompts and seeds alone, also after a resume (on a CPU; GPU kernels may round otherwise
in another batch).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from models.base import Dtype, ModelError

if TYPE_CHECKING:
    import torch

Tokens = Sequence[int]
Weights = Iterable[tuple[str, "torch.Tensor"]]


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn. `temperature=0` is greedy; `n` completions per prompt."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
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


class EngineError(RuntimeError):
    """The engine failed to start or serves something else than it was given."""

    user_message = True


class Engine(Protocol):
    """What a stage needs of an engine. `seeds`: one per prompt; completion k of a prompt draws from seed + k."""

    kind: str
    dtype: "torch.dtype"
    serves_adapters: bool

    def generate(
        self,
        prompts: Sequence[Tokens],
        sampling: Sampling,
        seeds: Sequence[int] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]: ...

    def score(self, prompts: Sequence[Tokens], completions: Sequence[Tokens]) -> list[list[float]]:
        """Log-probability in nats of each completion token under the weights now served, at temperature 1."""
        ...

    def sync_folded(self, weights: Weights) -> None: ...

    def sync_adapter(self, folder: Path) -> None:
        """Serve a PEFT adapter folder from now on; the folder is read before this returns."""
        ...

    def rest(self) -> None:
        """Give memory back while the process goes on; nothing is asked of this engine again."""
        ...

    def close(self) -> None:
        """The last call, when the process is about to end."""
        ...


EngineKind = Literal["vllm", "transformers"]


@dataclass(frozen=True)
class EngineSettings:
    """How an engine is started.

    Args:
        max_model_len: prompt and completion tokens together.
        max_num_seqs: sequences decoded at once.
        dtype: see models/base.py, `arithmetic`.
        lora_rank: rank to reserve for `sync_adapter`; 0 for engines that only get folded weights.
        memory: share of the GPU's memory that vLLM may take.
        kv_cache_gib: KV cache on a CPU.
        temporary: the engine will be put to rest before the run ends (a teacher's).
    """

    max_model_len: int
    max_num_seqs: int = 256
    dtype: Dtype = "auto"
    lora_rank: int = 0
    memory: float = 0.4
    kv_cache_gib: int = 1
    temporary: bool = False


def vllm_available() -> bool:
    """Whether vLLM can be imported here, without importing it."""
    from importlib.util import find_spec

    return find_spec("vllm") is not None


def start_engine(kind: Literal["auto", "vllm", "transformers"], model: str, settings: EngineSettings) -> Engine:
    """Start an engine that serves the checkpoint's own weights until its first sync.

    `auto` is vLLM where it is installed, transformers elsewhere; asking for vLLM where it is missing is an error.

    Raises:
        EngineError: it cannot start.
    """
    if kind == "transformers" or (kind == "auto" and not vllm_available()):
        from models.transformers_engine import TransformersEngine

        try:
            return TransformersEngine(model, settings)
        except (OSError, ValueError, RuntimeError) as error:
            raise EngineError(f"transformers cannot serve '{model}': {last_line(error)}") from error
    if not vllm_available():
        raise EngineError(
            "rollouts.engine: 'vllm' is not installed here; use 'auto' or 'transformers', or `make setup`"
        )
    from models.vllm_engine import VllmEngine

    try:
        return VllmEngine(model, settings)
    except (ModelError, EngineError):
        raise
    except Exception as error:
        raise EngineError(
            f"vLLM failed to start for '{model}': {last_line(error)}. The stage's log has its own words; "
            "`--set rollouts.engine=transformers` goes on without it"
        ) from error


def last_line(error: Exception) -> str:
    """An exception's kind and the last line of its message."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"
