"""Starting an engine: which kind, and with room for what."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from models.base import ModelError
from models.engines.protocol import Engine, EngineError, last_line
from models.settings import Serving


@dataclass(frozen=True)
class Capacity:
    """What an engine must have room for.

    Fields:
        max_model_len: prompt and completion tokens together.
        max_num_seqs: sequences decoded at once.
        lora_rank: rank to reserve for `sync_adapter`; 0 for engines that only get folded weights.
        temporary: the engine will be put to rest before the run ends (a teacher's).
    """

    max_model_len: int
    max_num_seqs: int = 256
    lora_rank: int = 0
    temporary: bool = False


def vllm_available() -> bool:
    """Whether vLLM can be imported here, without importing it."""
    return find_spec("vllm") is not None


def engine_kind(serving: Serving) -> Literal["vllm", "transformers"]:
    """The engine that these settings mean on this machine: `auto` is vLLM where it is installed."""
    if serving.engine != "auto":
        return serving.engine
    return "vllm" if vllm_available() else "transformers"


def start_engine(model: str, serving: Serving, capacity: Capacity) -> Engine:
    """Start an engine that serves the checkpoint's own weights until its first sync.

    Args:
        model: Hub id, local folder or `embedded/student`-like name of a shipped model.

    Raises:
        EngineError: it cannot start; asking for vLLM where it is missing is an error.
    """
    if engine_kind(serving) == "transformers":
        from models.engines.transformers import TransformersEngine

        try:
            return TransformersEngine(model, serving, capacity)
        except (OSError, ValueError, RuntimeError) as error:
            raise EngineError(f"transformers cannot serve '{model}': {last_line(error)}") from error
    if not vllm_available():
        raise EngineError(
            "rollouts.engine: 'vllm' is not installed here; use 'auto' or 'transformers', or `make setup`"
        )
    from models.engines.vllm import VllmEngine

    try:
        return VllmEngine(model, serving, capacity)
    except (ModelError, EngineError):
        raise
    except Exception as error:
        raise EngineError(
            f"vLLM failed to start for '{model}': {last_line(error)}. The stage's log has its own words; "
            "`--set rollouts.engine=transformers` goes on without it"
        ) from error
