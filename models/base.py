"""The frozen base: loading it in 4-bit, proving that it never changes, reading its exact values back.

Everything trained is an adapter on top (models/adapters.py), so whatever the base's quantised weights decode to is the
model that the policy, the engine and the export must all agree on. `dequantized` gives those values.
"""

import copy
import gc
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from models.conversation import Conversation, UntrainedEndError, conversation_of, declared_ends, speak
from models.families import refused
from models.paths import model_place
from models.settings import Arithmetic, PromptFormat, Quantize
from models.sizes import arithmetic_name

if TYPE_CHECKING:
    from bitsandbytes.functional import QuantState
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class ModelError(ValueError):
    """A model that cannot be found or loaded; the message says which and what to do."""

    user_message = True


def load_tokenizer(name: str, prompt: PromptFormat | None = None) -> "PreTrainedTokenizerBase":
    """Tokenizer of a Hub id, a local folder or an `embedded/...` model, as the model is spoken to: its chat template is
    the prompt format, its `eos_token` what completions end with (models/conversation.py); and a pad token is set.

    Args:
        prompt: `Model.prompt`; None is `auto`.

    Raises:
        ModelError: it cannot be found, or it has no end-of-sequence token that was trained on.
    """
    tokenizer, conversation = _tokenizer_of(name, prompt)
    speak(tokenizer, conversation)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def spoken_to(name: str, prompt: PromptFormat | None) -> Conversation:
    """How a model is spoken to. Takes and raises what `load_tokenizer` does."""
    return _tokenizer_of(name, prompt)[1]


def _tokenizer_of(name: str, prompt: PromptFormat | None) -> "tuple[PreTrainedTokenizerBase, Conversation]":
    from jinja2 import TemplateError
    from transformers import AutoTokenizer

    place = model_place(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place.path, revision=place.revision)
        if tokenizer.eos_token_id is None:
            raise ModelError(f"model '{name}': its tokenizer has no eos_token, so no completion could ever end")
        return tokenizer, conversation_of(place, tokenizer, prompt or "auto")
    except (UntrainedEndError, TemplateError) as error:
        raise ModelError(f"model '{name}': {error}") from error
    except ModelError:
        raise
    except (OSError, ValueError) as error:
        raise ModelError(_cannot_load(name, error)) from error


def end_tokens(name: str, tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """The tokens at which a model stops: those that it declares, of which one is the tokenizer's."""
    return frozenset({tokenizer.eos_token_id, *declared_ends(model_place(name))})


def load_config(name: str) -> "PreTrainedConfig":
    """What a model's config.json says.

    Raises:
        ModelError: it cannot be found or read.
    """
    from transformers import AutoConfig

    place = model_place(name)
    try:
        return AutoConfig.from_pretrained(place.path, revision=place.revision)
    except (OSError, ValueError) as error:
        raise ModelError(_cannot_load(name, error)) from error


def skeleton(name: str) -> "PreTrainedModel":
    """A model's modules without its weights. Raises ModelError."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(load_config(name))


def context_length(name: str) -> int:
    """Tokens that a model was made for. Raises ModelError."""
    return load_config(name).max_position_embeddings


def architecture(name: str) -> str | None:
    """The class that a checkpoint says it is of, such as `Qwen2ForCausalLM`. Raises ModelError."""
    return next(iter(load_config(name).architectures or ()), None)


def arithmetic(dtype: Arithmetic) -> torch.dtype:
    """What a recipe's `dtype` means on this machine."""
    return getattr(torch, arithmetic_name(dtype, cuda=torch.cuda.is_available()))


def arithmetic_of(model: nn.Module) -> torch.dtype:
    """The arithmetic that a base was loaded for: its embeddings are never quantised."""
    return model.get_input_embeddings().weight.dtype


def trained_arithmetic(model: nn.Module) -> torch.autocast:
    """Inside, forward passes compute as training does, whether or not accelerate has the model in hand."""
    device = next(model.parameters()).device.type
    return torch.autocast(device, torch.bfloat16, enabled=arithmetic_of(model) == torch.bfloat16)


def load_base(name: str, quantize: Quantize, dtype: Arithmetic) -> "PreTrainedModel":
    """Load a causal LM as a frozen base.

    Args:
        name: Hub id, local folder or `embedded/student`-like name of a shipped model.
        quantize: `nf4` is 4-bit NormalFloat with double quantisation (QLoRA, arXiv 2305.14314, section 3);
            `none` keeps the checkpoint's own values.
        dtype: of what is not quantised, and of the arithmetic; see `arithmetic`.

    No parameter requires a gradient.

    Raises:
        ModelError: the model cannot be found or loaded, or is of a kind that cannot be a base.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    cuda = torch.cuda.is_available()
    compute = arithmetic(dtype)
    place = model_place(name)
    quantization = None
    if quantize == "nf4":
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
        )
    if reason := refused(load_config(name).to_dict()):
        raise ModelError(f"model.base: {name!r} {reason}")
    try:
        with one_thread():
            model, found = AutoModelForCausalLM.from_pretrained(
                place.path,
                revision=place.revision,
                dtype=compute,
                quantization_config=quantization,
                device_map={"": torch.cuda.current_device()} if cuda else {"": "cpu"},
                output_loading_info=True,
            )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(_cannot_load(name, error)) from error
    # transformers fills a missing tensor with random numbers, and takes one of any shape into a 4-bit layer
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])
        raise ModelError(f"model '{name}': its checkpoint lacks {len(missing)} tensors, the first is '{missing[0]}'")
    for layer_name, layer in quantized_layers(model):
        wanted = (layer.out_features, layer.in_features)
        if tuple(layer.weight.quant_state.shape) != wanted:
            raise ModelError(
                f"model '{name}': '{layer_name}.weight' is {tuple(layer.weight.quant_state.shape)} in the checkpoint, "
                f"config.json wants {wanted}"
            )
    for module in model.modules():
        # bitsandbytes repacks such layers in place on their first eval forward, which corrupts training and
        # dequantisation (bitsandbytes#2078)
        if is_4bit(module):
            module.support_avx512bf16_for_cpu = False
    model.requires_grad_(False)
    return model


def nf4_values(weight: torch.Tensor) -> torch.Tensor:
    """The exact values (out x in, float32) that a linear layer's weight has once `load_base` has quantised it, on the
    weight's own device.

    Args:
        weight: in the base's arithmetic.
    """
    from bitsandbytes.functional import quantize_4bit

    with one_thread():
        packed, state = quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
    return _decoded(packed, state)


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch computes with one thread: the last bits of a sum depend on how many threads add it up, and one of
    several processes has fewer than one alone. Double quantisation subtracts a mean, and must give the same codes."""
    threads = torch.get_num_threads()
    # vLLM's CPU worker puts a function that does nothing in the place of torch.set_num_threads
    torch._C.set_num_threads(1)
    try:
        yield
    finally:
        torch._C.set_num_threads(threads)


def _cannot_load(name: str, error: Exception) -> str:
    where = "" if Path(name).exists() else " (neither a local folder, nor a shipped model, nor reachable on the Hub)"
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return f"model '{name}' cannot be loaded{where}: {reason}"


def is_4bit(module: nn.Module) -> bool:
    """Whether it is a linear layer whose weight bitsandbytes has quantised."""
    return type(module).__name__ == "Linear4bit"


def dequantized(linear: nn.Module) -> torch.Tensor:
    """The exact values (out x in, float32) of a linear layer's weight, quantised or not; always a new tensor.

    Decoded to float32 also where the layer computes in bfloat16. An adapter's update is often smaller than bfloat16's
    spacing: added to exact values it survives the cast on average, added to values on bfloat16's grid it is lost.
    """
    weight = linear.weight
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight.detach().to(torch.float32, copy=True)
    return _decoded(weight.data, state)


def _decoded(packed: torch.Tensor, state: "QuantState") -> torch.Tensor:
    from bitsandbytes.functional import dequantize_4bit

    exact = copy.copy(state)
    exact.dtype = torch.float32
    return dequantize_4bit(packed, exact)


def to_arithmetic(model: "PreTrainedModel", dtype: torch.dtype) -> "PreTrainedModel":
    """Let a loaded base compute in another arithmetic. Its 4-bit codes stay those that it was trained on, which loading
    it in that arithmetic would not give: a checkpoint is cast before it is quantised. What is not quantised is cast."""
    for _, layer in quantized_layers(model):
        layer.compute_dtype = layer.weight.quant_state.dtype = dtype
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and ".lora_" not in name:
            parameter.data = parameter.data.to(dtype)
    return model


def to_float32(model: "PreTrainedModel") -> "PreTrainedModel":
    """A base that computes in float32."""
    return to_arithmetic(model, torch.float32)


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of each 4-bit linear layer."""
    return ((name, module) for name, module in model.named_modules() if is_4bit(module))


def base_sha256(model: nn.Module) -> str:
    """Hash of every frozen tensor of the base: parameters, buffers and the quantisation states they are decoded with.

    Adapters on the model do not enter it, so it must be the same before, during and after training.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted([*model.named_parameters(), *model.named_buffers()]):
        if ".lora_" in name:
            continue
        digest.update(name.replace("base_model.model.", "").replace(".base_layer", "").encode())
        hash_tensor(digest, parameter.data)
        state = getattr(parameter, "quant_state", None)
        while state is not None:
            for tensor in (state.absmax, state.code, state.offset):
                if tensor is not None:
                    hash_tensor(digest, tensor)
            state = state.state2
    return digest.hexdigest()


def free_memory() -> None:
    """Give back what nobody uses: a policy is a reference cycle, which would stay until memory is short; and what torch
    keeps for itself counts as taken when vLLM looks for its share."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def hash_tensor(digest: "hashlib._Hash", tensor: torch.Tensor) -> None:
    """Feed a tensor's dtype, shape and bytes to a digest."""
    digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
