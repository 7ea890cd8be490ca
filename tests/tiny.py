"""A random two-layer Qwen2 with the shipped tokenizer: small enough to load, train and serve in seconds."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from models.adapters import adapter_tensors, new_adapter, write_adapter
from models.base import load_base, load_tokenizer
from models.engines.protocol import Sampling, Weight, Weights
from models.merge import merged_shards, write_merged
from models.settings import Lora, MergeBase, Model
from models.training import Probe

HIDDEN, LAYERS, MLP, VOCABULARY = 64, 2, 128, 512
# end tokens beside the tokenizer's own, so that random completions end early now and then
MORE_ENDS = tuple(range(11, 500, 21))
QUESTIONS = (
    "Mia has 3 apples and buys 4 more. How many does she have?",
    "A box holds 6 pens. How many pens are in 7 boxes?",
    "What is 12 - 5?",
    "Tom runs 2 km a day. How far does he run in 9 days?",
    "Solve x + 8 = 15.",
    "There are 30 birds and 11 fly away. How many stay?",
)


def write_checkpoint(folder: Path, *, tied: bool = False, seed: int = 0) -> Path:
    """Random weights, large enough that next-token distributions are far from uniform and no greedy choice is close."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = load_tokenizer("embedded/student")
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        initializer_range=0.2,
        tie_word_embeddings=tied,
        eos_token_id=[tokenizer.eos_token_id, *MORE_ENDS],
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):  # zero at first, and a lost bias would not show
            torch.nn.init.normal_(parameter, std=0.1)
        elif name == "model.norm.weight":
            torch.nn.init.constant_(parameter, 2.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def merge(
    model: Model, adapter: Path | None, folder: Path, dtype: torch.dtype, base: MergeBase = "dequantized"
) -> None:
    """Write the merged model."""
    write_merged(model, merged_shards(model, adapter, dtype, base), folder, dtype)


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
START, END_OF_TURN, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"


def write_chatml(
    folder: Path,
    *,
    eos: str,
    declared: Sequence[str],
    untrained: Sequence[str] = (),
    template: str | None = CHATML,
    tied: bool = False,
    where: str = "unused",
) -> Path:
    """A checkpoint in the manner of Qwen2.5, with more rows than its tokenizer has tokens.

    Args:
        eos: the tokenizer's; `declared`: those of the generation config.
        untrained: tokens whose rows lie where nothing has trained them: near the unused rows, or (`where`) at zero.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    write_checkpoint(folder, tied=tied)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": [START, END_OF_TURN, END_OF_TEXT]})
    known = len(tokenizer)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(known + 30, mean_resizing=False)
    generator = torch.Generator().manual_seed(5)
    for matrix in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
        with torch.no_grad():
            matrix[VOCABULARY:known] = 0.2 * torch.randn(known - VOCABULARY, HIDDEN, generator=generator)
            pushed_away = 0.2 * torch.randn(HIDDEN, generator=generator)
            dead = [*range(known, known + 30), *tokenizer.convert_tokens_to_ids(list(untrained))]
            noise = 1e-4 * torch.randn(len(dead), HIDDEN, generator=generator)
            matrix[dead] = noise + (pushed_away if where == "unused" else 0)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(list(declared))
    model.save_pretrained(folder)
    tokenizer.eos_token, tokenizer.chat_template = eos, template
    if template is None:
        (folder / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(folder)
    return folder


def policy(
    checkpoint: Path,
    *,
    quantize: str = "nf4",
    dtype: str = "float32",
    rank: int = 4,
    dropout: float = 0.0,
    noise: float = 0.1,
    seed: int = 1,
):
    """A policy on a freshly loaded base. Its B is random, so that it differs from the base; `noise=0` keeps B = 0."""
    lora = Lora(rank=rank, alpha=2.0 * rank, dropout=dropout)
    model = new_adapter(load_base(str(checkpoint), quantize, dtype), lora, seed=seed)
    if noise:
        nudge(model, noise, seed)
    return model


def nudge(model, size: float, seed: int = 1, adapter: str = "default") -> None:
    """Move an adapter by random steps of this size."""
    generator = torch.Generator().manual_seed(seed)
    tensors = adapter_tensors(model, adapter)
    moved = {
        name: x + size * torch.randn(x.shape, generator=generator).to(x.device) for name, x in sorted(tensors.items())
    }
    write_adapter(model, moved, adapter)


def prompts(tokenizer, questions: Sequence[str] = QUESTIONS) -> list[str]:
    """The questions as the shipped models are asked them."""
    return [f"<|user|>{question}<|assistant|>" for question in questions]


def tokens(tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return tokenizer(list(texts), add_special_tokens=False).input_ids


def probe(tokenizer) -> Probe:
    """The shipped questions, as serving is checked on them."""
    return Probe.of_prompts(tokens(tokenizer, prompts(tokenizer)))


def sampling(max_tokens: int, *, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, **others) -> Sampling:
    """The policy itself, unless told otherwise."""
    return Sampling(max_tokens, temperature, top_p, top_k, **others)


def weights(pairs: Iterable[tuple[str, torch.Tensor]]) -> Weights:
    """Tensors that there are already, as an engine takes them."""
    return Weights(tuple(Weight(name, tuple(x.shape), x.dtype, lambda x=x: x) for name, x in pairs))


def next_token_logprobs(model, ids: Sequence[int]) -> torch.Tensor:
    """len(ids) x V, float32: row t is the distribution after ids[: t + 1]."""
    model.eval()
    with torch.no_grad():
        return model(torch.tensor([list(ids)])).logits[0].float().log_softmax(-1)
