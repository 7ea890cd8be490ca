"""Settings of an export: the keys of the stage, and of the command that does the same; and of a preflight."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from evals.settings import AuditSettings, FidelityLimits
from models.settings import GrowthSettings, MergeBase, RouterSettings
from settings import FREE, SIZE, Count, Names, Node, Refers, Share, Text

EXPORT = "model"
"""A stage's export, in its folder."""
PREFLIGHT, PERPLEXITY = "preflight.json", "perplexity.json"
"""What a stage has measured of data before it trains, and of its policy after."""
EXPERTS = "experts.json"
"""Where a stage trains several: what each of its experts did, and how likely it finds texts."""
LOAD = "load_"
"""Before an arm's name, what its load is called in a result."""
REMOVAL = "removal: "
"""Before a field of `models.experts.RemovalRecord`, what a predicted cost is called in a result: that of a part."""
PANEL_EVALUATION, GROWTH = "panel-evaluation.json", "growth.json"
"""What a panel's router wins, beside every other way of choosing who answers; and how a panel grew."""
ANSWERS, SCORED = "answers", "second"
"""Where a stage keeps what the arms of a panel answered, and the draw by which they are scored."""


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


class ArmsAsked(Node):
    """How often the arms of a panel, the base and its experts, are asked the same problem."""

    samples: Annotated[Count, Field(le=1024), SIZE] = 2
    """Completions of each arm per training problem, to learn which arm solves what. More problems teach more than more
    samples of fewer (benchmarks/experts.md)."""
    oracle_samples: Annotated[Count, Field(le=1024), SIZE] = 8
    """Completions of each arm per held-out problem by which the oracles and the best single expert are chosen; they are
    scored on others, `evaluate.samples` of them."""


class RouteSettings(RouterSettings, ArmsAsked):
    """What a router learns from, and what its panel is compared with (orchestra/work/routing.py)."""

    problems: Annotated[Count, SIZE] = 2000
    """Training problems that every arm is asked, to learn which solves which: those first of which no stage before has
    traces, for an expert may know its own by heart."""
    min_load: Annotated[Share, FREE] = 0.0
    """A NO-GO where a smaller share of the held-out problems is routed to an expert; 0: none."""
    generalist: Annotated[Text | None, Refers("policy")] = None
    """An earlier stage whose single policy the panel is compared with: one adapter, trained on all data. None: none."""


class GrowSettings(ArmsAsked):
    """How a panel grows and shrinks by itself (orchestra/work/growing.py)."""

    growth: GrowthSettings = GrowthSettings()
    """When an expert is added or removed."""
    rounds: Annotated[Count, Field(le=1000), SIZE] = 8
    """Windows of problems that are looked at."""
    window: Annotated[Count, SIZE] = 100
    """Training problems of a window, each window its own."""
    learn: Annotated[Count, SIZE] = 600
    """Training problems that the router's rows are learned from."""
    gain: Annotated[Count, Field(ge=2), SIZE] = 300
    """Training problems on which a change must prove itself: a new expert stays where the routed panel gains by it, the
    paired interval above 0; one is removed where what that costs is not more than `may_cost`, by its interval's lower
    end."""
    may_cost: Share = 0.02
    """Points (0.02 is two) that a removal may cost at most."""
    router: RouterSettings = RouterSettings()
    """The panel's router, which gets a row for each new expert."""
    controller: Literal["signals", "learned"] = "signals"
    """What the windows are judged by: what the arms answered, or a head that tells from the prompts alone what would be
    unsolved, and asks nobody."""
    labels: Literal["outcome", "random"] = "outcome"
    """Of a learned controller: what became of the problems (`grow` where no arm solves it, `prune` where the base does
    as well as every expert), or drawn at random: 30 % `grow`, 20 % `prune` (experiment 7b-1)."""
    audit: AuditSettings = AuditSettings()
    """Of a learned controller's labels; where shuffled ones do as well, nothing changes and the stage is a NO-GO."""


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
