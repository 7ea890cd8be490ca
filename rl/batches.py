"""From a step's rows to micro-batches: what gives no gradient is left out, the rest is cut.

Sorting by length and leaving rows out never change a gradient here: `dapo` divides the summed token losses by a token
count that is fixed before (arXiv 2503.14476, eq. 8), so any split of the rows gives the same sum. The other losses
average within a micro-batch, so those keep all rows and equal sizes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Row:
    """One completion with its prompt.

    Fields:
        prompt, completion: token ids, one dimension.
        sampling_logprobs: of the completion's tokens, nats, from the engine.
        advantage: of the completion; 0 where zero_variance, in which rounding leaves about 1e-3.
        in_loss: False where the completion is masked (cut off, say).
        zero_variance: all rewards of its group are equal.
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
    count: int,
    *,
    loss_type: str,
    mask_zero_variance: bool,
    num_items: torch.Tensor,
    pad: int,
    sizes: Callable[[list[int]], list[int]] = list,
) -> list[Batch]:
    """Split rows into `count` padded batches, as TRL's loss reads them.

    Args:
        loss_type: TRL's; see the module docstring for what it allows.
        mask_zero_variance: take rows of zero-variance groups out of the loss (their advantage is 0 anyway; this is
            about their KL gradient).
        num_items: completion tokens of the whole step over all processes, counted before anything is masked here.
        pad: token id.
        sizes: takes the number of rows of each micro-batch and gives how many it shall have, filled up with rows that
            are not in the loss: TRL gathers per-row numbers, so all processes need the same.
    """
    if mask_zero_variance:
        rows = [replace(row, in_loss=row.in_loss and not row.zero_variance) for row in rows]
    if loss_type == "dapo":
        # a step may have nothing to learn from: one masked row then carries a gradient of zero
        rows = [row for row in rows if row.in_loss] or [replace(rows[0], in_loss=False)]
        parts = _equal_tokens(sorted(rows, key=len), count)
    else:
        ordered = sorted(rows, key=len) if loss_type != "bnpo" else list(rows)
        size = len(ordered) // count
        parts = [ordered[i * size : (i + 1) * size] for i in range(count)]
    filler = replace(rows[0], prompt=rows[0].prompt[:1], completion=rows[0].completion[:1], in_loss=False,
                     sampling_logprobs=rows[0].sampling_logprobs[:1])  # fmt: skip
    wanted = sizes([max(len(part), 1) for part in parts])
    return [
        _padded([*part, *[filler] * (size - len(part))], num_items, pad)
        for part, size in zip(parts, wanted, strict=True)
    ]


def _equal_tokens(rows: Sequence[Row], count: int) -> list[Sequence[Row]]:
    """Cut sorted rows into runs of about equal padded size (rows x longest), the work of a forward pass."""
    total = sum(len(row) for row in rows)
    parts: list[list[Row]] = [[]]
    done = 0
    for row in rows:
        if parts[-1] and len(parts) < count and done >= total * len(parts) / count:
            parts.append([])
        parts[-1].append(row)
        done += len(row)
    return parts + [[]] * (count - len(parts))


def _padded(rows: Sequence[Row], num_items: torch.Tensor, pad: int) -> Batch:
    """B rows, prompts padded on the left and completions on the right, on the device of `num_items`."""
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
    return {name: tensor.to(num_items.device) for name, tensor in batch.items()} | {"num_items_in_batch": num_items}
