"""What transformers' generate lacks of a `Sampling`, or does in another way than vLLM, which is followed here.

Its own repetition penalty counts the padding on the left as part of a prompt, it has no presence penalty, and it
applies min_p after top_p and not before, which makes another nucleus. What is made here runs before its temperature.
"""

import math
from collections.abc import Sequence

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from models.engines.protocol import Sampling, Tokens


class Penalties(LogitsProcessor):
    """Repetition penalty on the tokens of prompt and completion, then presence penalty on those of the completion.

    Args:
        prompts: of the rows, unpadded; each is that of `copies` rows.
        width: of the padded prompts.
    """

    def __init__(self, prompts: Sequence[Tokens], copies: int, width: int, repetition: float, presence: float) -> None:
        self._rows = [sorted(set(prompt)) for prompt in prompts for _ in range(copies)]
        self._width, self._repetition, self._presence = width, repetition, presence
        self._asked_RV: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Rows x vocabulary, from the rows so far and the logits of the next token."""
        if self._asked_RV is None:
            self._asked_RV = torch.zeros_like(scores, dtype=torch.bool)
            for i, tokens in enumerate(self._rows):
                self._asked_RV[i, tokens] = True
        written_RV = torch.zeros_like(self._asked_RV).scatter_(1, input_ids[:, self._width :], True)
        scaled = torch.where(scores > 0, scores * (1 / self._repetition), scores * self._repetition)
        return torch.where(self._asked_RV | written_RV, scaled, scores) - self._presence * written_RV


class MinP(LogitsProcessor):
    """min_p at a temperature that is applied afterwards: p >= min_p p_max says of logits l >= l_max + T log min_p."""

    def __init__(self, min_p: float, temperature: float) -> None:
        self._distance = temperature * math.log(min_p)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The same logits, -inf where they are too far below the highest."""
        lowest = scores.amax(-1, keepdim=True) + self._distance
        return scores.masked_fill(scores < lowest, -torch.inf)


def shaping(prompts: Sequence[Tokens], width: int, sampling: Sampling) -> LogitsProcessorList:
    """What generate is to run before its own temperature, top_k and top_p.

    Args:
        prompts: unpadded; `width` is that of the padded ones.
    """
    made = LogitsProcessorList()
    repetition, presence = sampling.repetition_penalty or 1.0, sampling.presence_penalty or 0.0
    if repetition != 1 or presence:
        made.append(Penalties(prompts, sampling.n, width, repetition, presence))
    if sampling.min_p and sampling.temperature:
        made.append(MinP(sampling.min_p, sampling.temperature))
    return made
