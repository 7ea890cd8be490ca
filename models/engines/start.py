"""Starting an engine: which kind, and with room for what."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from models.base import ModelError, architecture
from models.engines.protocol import Engine, EngineError, last_line
from models.settings import Serving

EngineKind = Literal["vllm", "transformers"]


@dataclass(frozen=True)
class Capacity:
    """What an engine must have room for.

    Fields:
        max_model_len: prompt and completion tokens together.
        max_num_seqs: sequences decoded at once.
        lora_rank: rank to reserve for `sync_adapter`; 0 for engines that only get folded weights.
        loras: adapters that may be at work in one batch.
        temporary: the engine will be put to rest before the run ends (a teacher's).
    """

    max_model_len: int
    max_num_seqs: int = 256
    lora_rank: int = 0
    loras: int = 1
    temporary: bool = False


def vllm_available() -> bool:
    """Whether vLLM can be imported here, without importing it."""
    return find_spec("vllm") is not None


def engine_kind(serving: Serving) -> EngineKind:
    """The engine that these settings mean on this machine: `auto` is vLLM where it is installed."""
    if serving.engine != "auto":
        return serving.engine
    return "vllm" if vllm_available() else "transformers"


def why_not_vllm(model: str, base: str) -> str:
    """What speaks against vLLM serving `model` in the process that trains `base`; empty where nothing does.

    A family that vLLM has not written itself it serves through transformers' classes, which it rewrites for the whole
    process (`support_torch_compile`): a trainer's model of the same class then fails in its next forward pass, for want
    of an attribute `do_not_compile`.

    Raises:
        ModelError: there is no such model.
    """
    if not vllm_available():
        return "vLLM is not installed here"
    served = architecture(model)
    if served != architecture(base):
        return ""
    from models.engines.vllm import prepare_process

    prepare_process()
    from vllm import ModelRegistry

    own = ModelRegistry.models.get(served)
    if own is not None and not getattr(own, "module_name", "").endswith(".transformers"):
        return ""
    return f"vLLM has no {served} of its own, and would rewrite that of transformers, which is trained here"


def serving_for(model: str, base: str, serving: Serving) -> Serving:
    """The settings, with transformers for `auto` where vLLM cannot serve this model in the process that trains `base`.

    Raises:
        EngineError: vLLM, or what only it can do, is asked for and cannot be had.
        ModelError: there is no such model.
    """
    if serving.engine == "transformers" or not (reason := why_not_vllm(model, base)):
        return serving
    if serving.engine == "vllm":
        raise EngineError(f"rollouts.engine: 'vllm' cannot serve {model!r}: {reason}; use 'auto' or 'transformers'")
    if serving.sync == "adapter":
        raise EngineError(f"rollouts.sync: 'adapter' needs vLLM for {model!r}, but {reason}; use 'auto' or 'folded'")
    return serving.model_copy(update={"engine": "transformers"})


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
