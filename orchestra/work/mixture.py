"""What a mixture stage does: a panel's experts act together inside the network; what that costs and gains."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from models.adapters import acting
from models.engines.protocol import Sampling
from models.engines.routed import adapter_name
from models.engines.transformers import TransformersEngine
from models.mixture import ROUTER, layers_of, mixture_model
from models.sizes import GENERATED_AT_ONCE
from orchestra.text import p_value, points
from orchestra.work.panels import RoutedPanel, panel_base
from orchestra.work.policies import EVALUATION, answered, measured

if TYPE_CHECKING:
    from peft import PeftModel

    from models.engines.protocol import Tokens
    from models.settings import MixtureSettings
    from orchestra.run.ledger import StageResult
    from orchestra.work.context import StageContext

TIMED = 32
"""Prompts that are answered greedily by the mixture and by one of its experts, to compare their speeds."""


def mix_panel(context: StageContext, settings: MixtureSettings) -> StageResult:
    """Put the mixture together, evaluate it, and say what it gains against the routed panel and what it costs.

    Raises:
        PanelError: the panel cannot be mixed, or was not evaluated routed.
    """
    panel, folder = context.before
    routed = RoutedPanel.before(context)
    base, sha256 = panel_base(context, panel)
    model = mixture_model(base, panel, folder, settings, seed=context.seed)
    layers = layers_of(settings, base.config.num_hidden_layers)
    say = context.progress.say
    say(
        f"    {len(panel.experts)} experts act in layers {layers[0]} to {layers[-1]} of {base.config.num_hidden_layers}"
    )
    engine = TransformersEngine.around(model, context.recipe.model.base, GENERATED_AT_ONCE)
    asked = context.resources.test(context.stage)
    evaluation = answered(context, asked, "evaluate the mixture", engine=context.resources.shared(engine))
    context.once(lambda: (context.folder / EVALUATION).write_text(evaluation.to_json()))
    gap = routed.compared(evaluation, context)
    gain = {"mixture_gain": -gap.difference, "mixture_gain_low": -gap.high, "mixture_gain_high": -gap.low}
    say(
        f"    mixture gain: {points(-gap.difference)} points [{points(-gap.high)}, {points(-gap.low)}] to the routed "
        f"panel, paired over {gap.n} problems, {p_value(gap.p_value)}"
    )
    cost = _cost(context, model, engine, asked.tokens[:TIMED], adapter_name(panel.names[0]))
    whole = 1000 * routed.evaluation.seconds / routed.evaluation.tokens
    kind = context.resources.engine().kind
    say(
        f"    mixture cost: {cost.mixture:.2f} s per 1,000 tokens, {cost.mixture / cost.expert:.1f} times one of its "
        f"experts by itself in the same engine; the routed panel's evaluation took {whole:.2f} s ({kind})"
    )
    told = {"seconds_per_1000_tokens": cost.mixture, "seconds_of_one_expert": cost.expert, "seconds_of_panel": whole}
    result = context.result(base_sha256=sha256, experts=len(panel.experts), engine_of_panel=kind, **gain, **told)
    return measured(context, evaluation, result)


@dataclass(frozen=True)
class Cost:
    """Seconds per 1,000 tokens of the mixture, and of one of its experts in the same layers and the same engine."""

    mixture: float
    expert: float


def _cost(
    context: StageContext, model: PeftModel, engine: TransformersEngine, prompts: Sequence[Tokens], expert: str
) -> Cost:
    """Measured on the same prompts, the quicker of two times each: whatever else the machine does only adds."""
    limit = context.stage.evaluation(context.recipe).max_completion_tokens
    sampling = Sampling(limit, temperature=0.0, top_p=1.0, top_k=0, stop_token_ids=context.resources.stops())

    def seconds(adapter: str) -> float:
        quickest = math.inf
        with acting(model, adapter):
            for _ in range(2):
                start = time.perf_counter()
                answers = engine.generate(prompts, sampling)
                quickest = min(quickest, time.perf_counter() - start)
        return 1000 * quickest / sum(len(one.token_ids) for group in answers for one in group)

    return Cost(seconds(ROUTER), seconds(expert))
