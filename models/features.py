"""What a router reads of a prompt: the frozen base's hidden states at a middle layer, averaged over its tokens."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import numpy as np
import torch

from models.base import ModelError, trained_arithmetic
from models.training import without_dropout

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class RouterError(ModelError):
    """A router that cannot be made, or does not fit the panel."""


def layer_of(model: "PreTrainedModel | PeftModel", layer: int | None) -> int:
    """Behind how many layers `RouterSettings.layer` reads prompts off this model.

    Raises:
        RouterError: the model has fewer layers.
    """
    layers = len(_decoder(model).layers)
    if layer is None:
        return layers // 2
    if not 0 <= layer <= layers:
        raise RouterError(f"router.layer: {layer} is not a layer of this base; 0 to {layers} are")
    return layer


def prompt_features(
    model: "PreTrainedModel | PeftModel",
    tokens_P: Sequence[Sequence[int]],
    layer: int | None = None,
    *,
    rows: int = 16,
    pad_token_id: int = 0,
) -> np.ndarray:
    """Mean over a prompt's tokens of the frozen base's hidden states, adapters off; problems x hidden, float32.

    The layers behind `layer` and the output head are not computed. Prompts of similar length go together, padded on the
    right, where a causal model does not look: what stands beside a prompt shows in rounding alone.

    Args:
        tokens_P: token ids of each prompt.
        layer: index into transformers' `hidden_states`, as in `layer_of`.
        rows: prompts per forward pass.
        pad_token_id: any valid id; padding is masked.

    Raises:
        RouterError: a prompt without tokens, a layer that there is not, or hidden states that are no numbers.
    """
    if empty := [at for at, tokens in enumerate(tokens_P) if not len(tokens)]:
        raise RouterError(f"router: prompt {empty[0]} has no tokens ({len(empty)} such of {len(tokens_P)})")
    decoder, device = _decoder(model), next(model.parameters()).device
    features_PH = np.empty((len(tokens_P), decoder.config.hidden_size), dtype=np.float32)
    order = sorted(range(len(tokens_P)), key=lambda at: len(tokens_P[at]))
    with torch.no_grad(), _base_alone(model), _up_to(decoder, layer_of(model, layer)):
        for start in range(0, len(order), rows):
            batch = order[start : start + rows]
            ids_BT = torch.full((len(batch), len(tokens_P[batch[-1]])), pad_token_id)
            mask_BT = torch.zeros_like(ids_BT)
            for row, at in enumerate(batch):
                ids_BT[row, : len(tokens_P[at])] = torch.tensor(tokens_P[at])
                mask_BT[row, : len(tokens_P[at])] = 1
            ids_BT, mask_BT = ids_BT.to(device), mask_BT.to(device)
            states_BTH = decoder(ids_BT, attention_mask=mask_BT, use_cache=False).last_hidden_state.float()
            sums_BH = states_BTH.masked_fill(mask_BT[..., None] == 0, 0.0).sum(1)
            features_PH[batch] = (sums_BH / mask_BT.sum(1, keepdim=True)).cpu().numpy()
    return checked(features_PH)


def checked(features_PH: np.ndarray) -> np.ndarray:
    """Features as float32.

    Raises:
        RouterError: no matrix, or not all of it numbers.
    """
    features_PH = np.asarray(features_PH, dtype=np.float32)
    if features_PH.ndim != 2:
        raise RouterError(f"router: features are problems x hidden, not of shape {features_PH.shape}")
    if not np.isfinite(features_PH).all():
        bad = int((~np.isfinite(features_PH)).any(axis=1).sum())
        raise RouterError(f"router: the base's hidden states of {bad} of {len(features_PH)} prompts are no numbers")
    return features_PH


def _decoder(model: "PreTrainedModel | PeftModel") -> torch.nn.Module:
    decoder = (model.get_base_model() if hasattr(model, "get_base_model") else model).get_decoder()
    if not (hasattr(decoder, "layers") and hasattr(decoder, "norm")):
        raise RouterError(
            f"model.base: a router cannot be put on a {model.config.model_type}; take a base with `layers`"
        )
    return decoder


@contextmanager
def _base_alone(model: "PreTrainedModel | PeftModel") -> Iterator[None]:
    """Inside, the model computes what its frozen base does; afterwards it is as it was."""
    # PEFT makes the active adapter trainable when it is enabled again, and no other
    trained = {parameter: parameter.requires_grad for parameter in model.parameters()}
    off = model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()
    try:
        with without_dropout(model), trained_arithmetic(model), off:
            yield
    finally:
        for parameter, required in trained.items():
            parameter.requires_grad_(required)


@contextmanager
def _up_to(decoder: torch.nn.Module, layer: int) -> Iterator[None]:
    """Inside, the decoder's last hidden state is `hidden_states[layer]`."""
    layers, norm = decoder.layers, decoder.norm
    if layer < len(layers):  # the last of the hidden states is normed
        decoder.layers, decoder.norm = layers[:layer], torch.nn.Identity()
    try:
        yield
    finally:
        decoder.layers, decoder.norm = layers, norm
