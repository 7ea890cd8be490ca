"""What is chosen where the recipe is silent, for trainers and plans: arithmetic, rows at once, gradient checkpointing.

Imports nothing heavy: a plan is made without torch.
"""

from typing import Literal

# on a GPU memory limits
GPU_TRACES, GPU_COMPLETIONS = 8, 16
# on a CPU padding limits: completions are sorted and each pass is cut to its longest, so with fewer rows less of the
# arithmetic is wasted, until the cost of a pass itself counts
CPU_TOKENS = 6144
# tensors of hidden size that a block keeps per token for the backward pass; the MLP's are counted by their width
BLOCK_TENSORS = 16
# completions of an export that transformers' generate, which pages no cache, writes at a time
GENERATED_AT_ONCE = 64
# adapters of a panel that vLLM keeps ready for one batch; requests of a further one wait for the next
EXPERTS_AT_ONCE = 8
# of the memory that is free; estimates err, and a CUDA allocator's pieces do not always fit together
USABLE = 0.8


def arithmetic_name(dtype: str, *, cuda: bool) -> str:
    """What a recipe's `dtype` means: `auto` is bfloat16 on CUDA and float32 on a CPU.

    A CPU with bfloat16 instructions is faster with it (a model of 25M parameters by 1.4, one of a million hardly), but
    then rounds, and differs from other CPUs; so it is to be asked for.
    """
    return dtype if dtype != "auto" else ("bfloat16" if cuda else "float32")


def automatic_sync(dtype: str, quantize: str, *, vllm: bool) -> Literal["folded", "adapter"]:
    """What `rollouts.sync: auto` means: the adapter where folding would lose it, in bfloat16 on a base whose values are
    on bfloat16's grid already.

    Args:
        dtype: the engine's arithmetic; quantize: of the trained base; vllm: the engine is vLLM.
    """
    return "adapter" if dtype == "bfloat16" and quantize == "none" and vllm else "folded"


def traces_at_once(asked: int | None, batch: int, *, cuda: bool) -> int:
    """Rows of an SFT forward pass: the largest divisor of `batch` that is not above the recipe's number or the default.

    Args:
        asked: the recipe's `micro_batch_size`.
        batch: traces of one step on one process.
    """
    return _divisor(batch, asked or (GPU_TRACES if cuda else batch))


def completion_tokens_at_once(asked: int | None, longest: int, *, cuda: bool) -> int:
    """Tokens of a GRPO forward pass, padding included: of the recipe's number of completions, or the default's, when
    all are as long as can be; of shorter ones there are more.

    Args:
        asked: the recipe's `micro_batch_size`.
        longest: tokens of the longest prompt and completion together.
    """
    if asked is None and not cuda:
        return max(CPU_TOKENS, longest)
    return (asked or GPU_COMPLETIONS) * longest


def _divisor(batch: int, limit: int) -> int:
    return max(n for n in range(1, max(1, min(limit, batch)) + 1) if batch % n == 0)


def activation_bytes(tokens: int, *, hidden: int, mlp: int, layers: int, number: int, checkpointing: bool) -> int:
    """What a forward pass keeps for the backward pass; `number` is bytes per number.

    With checkpointing a block keeps its input alone, and one block at a time is computed again.
    """
    block = BLOCK_TENSORS * hidden + 3 * mlp
    return tokens * number * (layers * hidden + block if checkpointing else layers * block)


def must_checkpoint(needed: int, free: int) -> bool:
    """Whether activations (bytes) are too many to be kept."""
    return needed > USABLE * free
