"""One training example as tokens: the rendering of whoever trains on traces and of whoever measures them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def example_tokens(tokenizer: "PreTrainedTokenizerBase", prompt: str, completion: str) -> tuple[list[int], list[int]]:
    """Tokens of a rendered prompt, and of the completion with the end token behind it.

    Tokenised apart, as in rollouts: a last prompt token that swallows the completion's first is never sampled from.
    """
    asked = tokenizer(prompt, add_special_tokens=False).input_ids
    return asked, [*tokenizer(completion, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
