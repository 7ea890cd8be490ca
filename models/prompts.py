"""Prompts: one rendering for training, rollouts, evaluation and the teacher."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

THINK = "<think>"


def render_prompt(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Mapping[str, str]]) -> str:
    """The text up to where the completion begins, by the template of a tokenizer that `load_tokenizer` gives.

    A system message is put at the head of the user's where the template knows none, and where it begins the thinking
    itself: the authors of such models (DeepSeek-R1 and its distills) ask for all instructions in the user's turn.
    """
    from jinja2 import TemplateError

    def rendered(turns: Sequence[Mapping[str, str]]) -> str:
        return tokenizer.apply_chat_template(list(turns), add_generation_prompt=True, tokenize=False)

    try:
        prompt = rendered(messages)
    except TemplateError:
        return rendered(_in_the_users_turn(messages))
    return rendered(_in_the_users_turn(messages)) if opening_of(prompt) else prompt


def _in_the_users_turn(messages: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """The same without a system message, whose content leads the next one's."""
    if len(messages) < 2 or messages[0]["role"] != "system":
        return list(messages)
    system, first, *rest = messages
    return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest]


def prompt_tokens(tokenizer: "PreTrainedTokenizerBase", prompt: str) -> list[int]:
    """Tokens of a rendered prompt, which already holds whatever special tokens its template wants."""
    return tokenizer(prompt, add_special_tokens=False).input_ids


def opening_of(prompt: str) -> str:
    """What a prompt already says of the completion: R1's template ends in `<think>`."""
    return f"{THINK}\n" if prompt.rstrip().endswith(THINK) else ""


def missing_opening(sampled: str, trained: str) -> str:
    """What has to be put before a completion to the one prompt that is then trained on under the other."""
    return "" if opening_of(trained) else opening_of(sampled)
