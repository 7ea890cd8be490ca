"""Settings of an export: the keys of the stage, and of the command that does the same; and of a preflight."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from evals.settings import FidelityLimits
from models.settings import MergeBase, RouterSettings
from settings import FREE, SIZE, Count, Names, Node, Refers, Share, Text

EXPORT = "model"
"""A stage's export, in its folder."""
PREFLIGHT, PERPLEXITY = "preflight.json", "perplexity.json"
"""What a stage has measured of data before it trains, and of its policy after."""
PANEL_EVALUATION = "panel-evaluation.json"
"""What a panel's router wins, beside every other way of choosing who answers."""


class ExportSettings(Node):
    """A policy as files that stand alone, and where they are published (orchestra/work/exporting.py)."""

    what: Literal["merged", "adapter", "panel"] = "merged"
    """A model that stands alone (the adapter is beside it), the adapter alone, or the last panel of experts before it:
    a folder that PEFT and vLLM serve experts from (what else is said here but for `what` does not apply to it)."""
    base: MergeBase = "dequantized"
    """What the adapter is merged into: the 4-bit base's own values, on which it was trained, or the original ones."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Of the merged model."""
    hub: Annotated[Text | None, Field(pattern=r"^[\w.-]+(/[\w.-]+)?(@[\w./-]+)?$")] = None
    """Hub repository `name/model[@branch]` that it is published to. None: the stage's folder only."""
    private: Annotated[bool, FREE] = True
    """Whether a repository that is made is private."""
    tag: Annotated[Text | None, FREE] = None
    """Put on the commit."""
    check: FidelityLimits = FidelityLimits()
    """What must hold before it counts, and before anything is published."""


class RouteSettings(RouterSettings):
    """What a router learns from, and what its panel is compared with (orchestra/work/routing.py)."""

    problems: Annotated[Count, SIZE] = 600
    """Training problems that every arm is asked, to learn which solves which: those first of which no stage before has
    traces, for an expert may know its own by heart."""
    samples: Annotated[Count, Field(le=1024), SIZE] = 4
    """Completions of each arm per problem to learn from."""
    oracle_samples: Annotated[Count, Field(le=1024), SIZE] = 8
    """Completions of each arm per held-out problem by which the oracles and the best single expert are chosen; they are
    scored on others, `evaluate.samples` of them."""
    generalist: Annotated[Text | None, Refers("policy")] = None
    """An earlier stage whose single policy the panel is compared with: one adapter, trained on all data. None: none."""


QUESTION = "{question}"
"""Where a problem's text goes in a template."""


class PreflightLimits(Node):
    """What a preflight measures of each source, and what it stops for and warns of (orchestra/work/preflight.py)."""

    problems: Annotated[Count, SIZE] = 256
    """Problems measured of each source, one text each."""
    template: Text = "Problem: {question}\nSolution:"
    """The second prompt, of whose use the template gap is; rows of a file that have a `prompt` of their own are
    measured under that instead."""
    mismatch: Literal["fail", "warn"] = "fail"
    """Where rows of a file have a `prompt` that is not the one of evaluation: stop, or warn and go on."""
    rare_below: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """A token of less probability counts as rare."""
    max_ratio: Annotated[float, Field(ge=1)] = 1.25
    """Warn where a source's perplexity is more than this many times that of the policy's own answers."""
    min_answer_rate: Share = 0.95
    """Warn where an answer is found in a smaller share of a source's texts."""
    min_end_rate: Share = 0.95
    """Warn where a smaller share of them ends as completions do: with a token at which the base stops, and none of
    those before it."""

    @model_validator(mode="after")
    def _asks(self) -> Self:
        if self.template.count(QUESTION) != 1:
            message = f"template: {QUESTION} must stand in it once, where the problem's text goes"
            raise PydanticCustomError("rule", "{text}", {"text": message})
        return self


class PreflightSettings(PreflightLimits):
    """Whether data fits the policy that is to imitate it, measured before it does (orchestra/work/preflight.py)."""

    data: Annotated[Names, Refers("traces", file=True)]
    """What an sft stage will imitate: names of earlier stages that give traces, or .jsonl files, as in its `data`."""
