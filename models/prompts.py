"""Prompts: one rendering for training, rollouts, evaluation and the teacher."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

THINK = "<think>"


def render_prompt(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Mapping[str, str]]) -> str:
    """The text up to where the completion begins: by the tokenizer's chat template, or plainly where it has none."""
    if tokenizer.chat_template:
        return tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
    return "\n\n".join(message["content"] for message in messages) + "\n\nAnswer:\n"


def prompt_tokens(tokenizer: "PreTrainedTokenizerBase", prompt: str) -> list[int]:
    """Tokens of a rendered prompt, which already holds whatever special tokens its template wants."""
    return tokenizer(prompt, add_special_tokens=False).input_ids


def opening_of(prompt: str) -> str:
    """What a prompt already says of the completion: R1's template ends in `<think>`."""
    return f"{THINK}\n" if prompt.rstrip().endswith(THINK) else ""
