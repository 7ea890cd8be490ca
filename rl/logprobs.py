"""Log-probabilities and entropies of completion tokens, without logits for the prompt or for padding.

TRL scores every position where there is no Triton, the prompt's and the padding's too, and with a buffer for the
largest vocabulary. Here the LM head runs only on the positions that are in the loss; the tiled kernel is TRL's own
(`trl.kernels`). The computation sits in the model's forward, as TRL's does, so that DDP sees it.
"""

import types
from typing import TYPE_CHECKING

import torch
from torch import nn
from trl.kernels import ChunkedLogProbFunction

from models.base import arithmetic_of, trained_arithmetic
from models.engines.serving import TOLERANCE
from models.training import Probe, TrainingError, mean_difference

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PretrainedConfig, PreTrainedModel

Batch = dict[str, torch.Tensor]
VOCABULARY_TILE = 32768


def install_scoring(causal: "PreTrainedModel") -> None:
    """Let the model's forward answer `scored=mask, starts=lengths, temperature=t` with (log-probabilities, entropies).

    `input_ids` (B x W) are rows padded on the right, where causal attention needs no mask; a row's completion begins
    after `starts` (B) tokens, and `scored` (B x C, bool) says which of its tokens count. The rest is 0 in both results
    (B x C, nats, float32). Without `scored` the forward is the model's own, and has no temperature.
    """
    own_forward = causal.forward
    cap, scale = logits_transform(causal.config)

    def forward(
        self: "PreTrainedModel",
        *args: object,
        scored: torch.Tensor | None = None,
        starts: torch.Tensor | None = None,
        temperature: float | None = None,
        **kwargs: object,
    ) -> object:
        if scored is None:
            return own_forward(*args, **kwargs)
        ids = kwargs["input_ids"]
        hidden = self.base_model(use_cache=False, **kwargs).last_hidden_state
        head = self.get_output_embeddings()
        row, token = scored.nonzero(as_tuple=True)
        place = starts[row] + token
        logprobs, entropy, *_ = ChunkedLogProbFunction.apply(
            hidden[row, place - 1],
            head.weight,
            head.bias,
            ids[row, place],
            temperature,
            min(VOCABULARY_TILE, head.weight.shape[0]),
            cap,
            scale,
            ("log_probs", "entropy"),
        )
        # the scatter stays connected to the model when nothing is scored: such a batch has a gradient of zero
        return tuple(
            hidden.new_zeros(scored.shape, dtype=x.dtype).masked_scatter(scored, x) for x in (logprobs, entropy)
        )

    causal.forward = types.MethodType(forward, causal)


def logits_transform(config: "PretrainedConfig") -> tuple[float | None, float]:
    """(cap, scale) of a family's logits, cap tanh(scale h W / cap): of Gemma, Cohere and Granite, say. Read as TRL
    does for its fused head (`trl.trainer.utils`); that nothing is overlooked, `check_scoring` sees."""
    scale = getattr(config, "logit_scale", None)
    if scale is None and getattr(config, "logits_scaling", None) is not None:
        scale = 1 / config.logits_scaling
    return getattr(config, "final_logit_softcapping", None), 1.0 if scale is None else scale


@torch.no_grad()
def check_scoring(policy: "PeftModel", probe: Probe) -> None:
    """What is scored, of a model with `install_scoring`, is what the model's own logits say.

    Raises:
        TrainingError: it is not, so this family does something to its logits that is not known here.
    """
    training = policy.training
    policy.eval()
    scored = []
    for prompt, completion in zip(probe.prompts, probe.completions, strict=True):
        ids = {"prompt_ids": torch.tensor([prompt]), "completion_ids": torch.tensor([completion])}
        masks = {name.replace("ids", "mask"): torch.ones_like(one) for name, one in ids.items()}
        batch = {name: one.to(policy.device) for name, one in (ids | masks).items()}
        with trained_arithmetic(policy):
            scored += completion_logprobs(policy, batch, 1.0)[0].tolist()
    policy.train(training)
    off = mean_difference(scored, probe.logprobs(policy))
    if not off <= TOLERANCE[arithmetic_of(policy)]:
        raise TrainingError(
            f"grpo cannot train a {policy.config.model_type} model: its logits are more than hidden states times the "
            f"output head, and how is not known here (log-probabilities are off by {off:.2g} nats a token)"
        )


def completion_logprobs(model: nn.Module, batch: Batch, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probabilities, entropies) of a batch's completion tokens under the active adapter, each B x C in nats."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    starts = batch["prompt_mask"].sum(dim=1)
    # without the padding between prompts and completions of different lengths: each row from its own first token on
    lengths = starts + batch["completion_mask"].sum(dim=1)
    width = int(lengths.max())
    places = torch.arange(width, device=ids.device) + (batch["prompt_ids"].shape[1] - starts)[:, None]
    return model(
        input_ids=ids.gather(1, places.clamp(max=ids.shape[1] - 1)),
        scored=batch["completion_mask"].bool(),
        starts=starts,
        temperature=temperature,
    )


def importance_weights(
    trainer_logprobs: torch.Tensor, engine_logprobs: torch.Tensor, mask: torch.Tensor, *, largest: float
) -> torch.Tensor:
    """Truncated importance weights pi_trainer / pi_engine per token (B x C), at most `largest`; 1 where nothing counts.

    Both compute the same policy, with different kernels. A token for which the engine gave NaN gets 1.
    """
    log_ratio = (trainer_logprobs - engine_logprobs) * mask
    return torch.exp(log_ratio.nan_to_num(nan=0.0)).clamp(max=largest)
