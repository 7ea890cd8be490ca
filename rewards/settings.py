"""Settings of problems and rewards."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from rewards.scoring import RewardError, check_weights
from settings import BY_EFFECT, SIZE, Count, CountOrName, Node, NotNegative, Refers, Share, Text, near


class Problems(Node):
    """Where problems come from."""

    domain: Text = "math"
    """What kind of task they are: a folder of rewards/ with problems, formats, verifier and rewards of its own."""
    train: Annotated[Text, SIZE, Refers("problems")]
    """`embedded` (the generator), a .jsonl file (`question`, `answer`, optional `solution`), or a Hub dataset
    (`name[:config][@revision]`)."""
    test: Annotated[Text, SIZE, Refers("problems")]
    """The held-out problems of every evaluation; same sources as `train`."""
    format: Text = "think-boxed"
    """Prompt and answer contract, see rewards/formats.py. think-boxed: <think>...</think>, then a box."""
    train_limit: Annotated[Count | None, SIZE] = None
    """Use at most this many training problems. None: all (of the generator: 4,000)."""
    test_limit: Annotated[Count | None, SIZE] = None
    """Evaluate on at most this many problems. None: all (of the generator: 500)."""
    validation: Annotated[CountOrName | None, SIZE, BY_EFFECT, Refers("problems")] = None
    """Problems that a stage with `evaluate_every` is asked on the way, neither trained on by any stage nor tested: so
    many of the training problems (the same ones whatever seed and order), or a source like `test`. None: none."""

    @model_validator(mode="after")
    def _validation_is_no_test(self) -> Self:
        if self.validation is not None and self.validation == self.test:
            message = (
                "validation: {source} is what `test` names, and the step that is kept may not be chosen on test "
                "problems; write a number (so many of the training problems) or another source"
            )
            raise PydanticCustomError("rule", message, {"source": repr(self.validation)})
        return self


class Reward(Node):
    """Weights of the reward's components; other names are functions in `file`."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, NotNegative]

    correct: NotNegative = 1.0
    """1 for a completion whose answer equals the gold, 0 otherwise."""
    format: NotNegative = 0.1
    """1 for a completion that keeps to the format, 0 otherwise."""
    length: NotNegative = 0.0
    """Overlong penalty, 0 to -1 (DAPO, arXiv 2503.14476)."""
    cosine: NotNegative = 0.0
    """A right answer pays more the shorter it is, a wrong one costs less the longer (arXiv 2502.03373)."""
    repetition: NotNegative = 0.0
    """Penalty for repeated n-grams, 0 to -1."""
    file: Annotated[Text | None, Refers("file")] = None
    """Python file with reward functions in TRL's signature, named here with their weights. It is executed."""
    ungradable_limit: Share = 0.05
    """A step stops the run when a larger share of its completions cannot be graded."""

    @property
    def weights(self) -> dict[str, float]:
        """Component or function name -> weight; components of weight 0 are left out."""
        own = {name: getattr(self, name) for name in ("correct", "format", "length", "cosine", "repetition")}
        return {name: weight for name, weight in (own | (self.__pydantic_extra__ or {})).items() if weight != 0}

    @model_validator(mode="after")
    def _right_beats_wrong(self) -> Self:
        unknown = list(self.__pydantic_extra__ or {})
        if unknown and self.file is None:
            hint = near(unknown[0], type(self).model_fields)
            message = "{name}: unknown component{hint} (functions of your own need `file:`)"
            raise PydanticCustomError("rule", message, {"name": unknown[0], "hint": hint})
        try:
            check_weights(self.weights)
        except RewardError as error:
            raise PydanticCustomError("rule", "{text}", {"text": str(error)}) from error
        return self
