"""Reference policies: what KL is measured against, in the penalty and in evaluation.

`base` (adapters off), `start` (the policy with which a stage began) or the policy of an earlier stage. The last two are
a frozen second adapter on the same base.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from models.adapters import POLICY, REFERENCE, adapter_sha256, adapter_tensors, add_reference, read_adapter, read_config
from models.training import TrainingError, without_dropout

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel


@dataclass(frozen=True)
class Reference:
    """A policy that does not change.

    Fields:
        name: as the recipe says it.
        tensors: the reference adapter's weights; None where the reference is the base.
        config: of the reference adapter, whose rank, scale and layers may be others than the policy's; None: they are
            the policy's.
    """

    name: str
    tensors: Mapping[str, torch.Tensor] | None
    config: "LoraConfig | None" = None

    @classmethod
    def saved(cls, name: str, folder: Path) -> "Reference":
        """The policy in an adapter's folder. Raises AdapterError."""
        return cls(name, read_adapter(folder), read_config(folder))

    def install(self, model: "PeftModel") -> None:
        """Add the frozen reference adapter to the model, where there is one."""
        if self.tensors is not None:
            add_reference(model, self.tensors, source=f"reference '{self.name}'", config=self.config)

    def replace(self, model: "PeftModel") -> None:
        """Put this reference in the place of the one that the model has."""
        if REFERENCE in model.peft_config:
            model.delete_adapter(REFERENCE)
        self.install(model)

    def check(self, model: "PeftModel") -> None:
        """Raises TrainingError when the reference in the model is no longer what was installed."""
        if self.tensors is None:
            return
        if adapter_sha256(adapter_tensors(model, REFERENCE)) != adapter_sha256(self.tensors):
            raise TrainingError(f"the reference '{self.name}' changed while the policy was trained")

    @contextmanager
    def active(self, model: "PeftModel") -> Iterator[None]:
        """Inside, the model computes the reference's log-probabilities, without dropout."""
        with without_dropout(model):
            if self.tensors is None:
                with model.disable_adapter():
                    yield
                return
            model.set_adapter(REFERENCE, inference_mode=True)
            try:
                yield
            finally:
                model.set_adapter(POLICY)
