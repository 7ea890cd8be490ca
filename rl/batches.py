"""From a step's rows to micro-batches: what gives no gradient is left out, the rest is cut.

How rows are cut never changes the gradient. `dapo` divides the summed token losses by a token count that is fixed
before (arXiv 2503.14476, eq. 8). `grpo` and `dr_grpo` average over the rows of a micro-batch, `bnpo` over its tokens; a
micro-batch's share of the process's rows (all of them, those left out too) or tokens in the loss makes that the average
over the step: sum_i (B_i / R) mean_i = (sum over rows) / R.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Row:
    """One completion with its prompt.

    Fields:
        prompt, completion: token ids, one dimension.
        sampling_logprobs: of the completion's tokens, nats, from the engine.
        advantage: of the completion.
        in_loss: False where the completion is masked (cut off, say).
        zero_variance: all completions of its group are equally good at the task.
    """

    prompt: torch.Tensor
    completion: torch.Tensor
    sampling_logprobs: torch.Tensor
    advantage: float
    in_loss: bool
    zero_variance: bool

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


def micro_batches(
    rows: Sequence[Row],
    budget: int,
    *,
    loss_type: str,
    mask_zero_variance: bool,
    num_items: torch.Tensor,
    pad: int,
    longest: Callable[[list[int]], list[int]] = list,
) -> list[Batch]:
    """Cut rows into padded batches as TRL's loss reads them; `share` is what the loss of one is to be multiplied by.

    Args:
        budget: tokens of a batch, rows x longest row; a single row may be longer.
        loss_type: TRL's; see the module docstring.
        mask_zero_variance: take rows of zero-variance groups out of the loss where they have no advantage (this is
            about their KL gradient).
        num_items: completion tokens of the whole step over all processes, counted before anything is masked here.
        pad: token id.
        longest: takes this process's row lengths, longest first and 0 for those left out, and gives the largest of all
            processes at each place. By these all of them cut alike: TRL gathers a number per row at every pass. A
            process with fewer rows fills up with the shortest there can be, which are not in the loss.
    """
    kept = [
        row for row in rows if row.in_loss and not (mask_zero_variance and row.zero_variance and row.advantage == 0)
    ]
    kept = sorted(kept, key=len, reverse=True)
    lengths = longest([len(row) for row in kept] + [0] * (len(rows) - len(kept)))
    filler = Row(rows[0].prompt[:1], rows[0].completion[:1], rows[0].sampling_logprobs[:1], 0.0, False, True)
    batches = []
    for start, end in _passes(lengths, budget):
        own = kept[start:end]
        if loss_type == "dapo":
            share = 1.0
        elif loss_type == "bnpo":
            share = _tokens(own) / max(_tokens(kept), 1)
        else:
            share = (end - start) / len(rows)
        batch = _padded([*own, *[filler] * (end - start - len(own))], pad, num_items.device)
        batches.append(batch | {"num_items_in_batch": num_items, "share": torch.tensor(share, device=num_items.device)})
    return batches


def _passes(lengths: Sequence[int], budget: int) -> list[tuple[int, int]]:
    """Runs of rows (longest first, 0 is none) that fill the budget when padded to their first.

    A step may have nothing to learn from: one row that is not in the loss then carries a gradient of zero.
    """
    count = sum(length > 0 for length in lengths)
    found, start = [], 0
    while start < count:
        end = min(start + max(budget // lengths[start], 1), count)
        found.append((start, end))
        start = end
    return found or [(0, 1)]


def _tokens(rows: Sequence[Row]) -> int:
    return sum(len(row.completion) for row in rows)


def _padded(rows: Sequence[Row], pad: int, device: torch.device) -> Batch:
    """B rows, prompts padded on the left and completions on the right."""
    width = max(len(row.prompt) for row in rows)
    length = max(len(row.completion) for row in rows)
    shape = (len(rows), length)
    batch = {
        "prompt_ids": torch.full((len(rows), width), pad),
        "prompt_mask": torch.zeros((len(rows), width), dtype=torch.long),
        "completion_ids": torch.full(shape, pad),
        "completion_mask": torch.zeros(shape, dtype=torch.int),
        "sampling_per_token_logps": torch.zeros(shape),
        "advantages": torch.tensor([row.advantage for row in rows]),
    }
    for i, row in enumerate(rows):
        start, end = width - len(row.prompt), len(row.completion)
        batch["prompt_ids"][i, start:] = row.prompt
        batch["prompt_mask"][i, start:] = 1
        batch["completion_ids"][i, :end] = row.completion
        batch["completion_mask"][i, :end] = int(row.in_loss)
        batch["sampling_per_token_logps"][i, :end] = row.sampling_logprobs
    return {name: tensor.to(device) for name, tensor in batch.items()}
