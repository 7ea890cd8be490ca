"""The card of an exported panel: its experts, what was measured of each, and the commands that load and serve them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from huggingface_hub import ModelCardData
from jinja2 import Environment, StrictUndefined

from models.engines.protocol import LORA_RANKS
from models.experts import EXPERTS, Expert, Panel
from models.paths import hub_model
from orchestra.config.recipe import Recipe
from orchestra.report.card import EXAMPLE, Licences
from orchestra.report.data import RunRecord
from orchestra.run.folder import LIBRARIES
from orchestra.text import FILTERS
from rewards.domain import get_domain

TEMPLATE = Path(__file__).parent / "templates" / "panel_card.md.j2"


def panel_card(run: RunRecord, recipe: Recipe, panel: Panel, no_go: str, licences: Licences) -> str:
    """README.md of an exported panel.

    Args:
        recipe: of the run, with the base as it was trained; no_go: what a gate said against it.
    """
    name = f"{run.name}-panel"
    base, licence = hub_model(panel.base), licences.of("model", panel.base)
    data = ModelCardData(
        model_name=name,
        base_model=base.repo if base is not None else None,
        library_name="peft",
        **asdict(licence),
        pipeline_tag="text-generation",
        tags=["lora", "experts", recipe.problems.domain, "orchestra-rl"],
    )
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= FILTERS
    domain = get_domain(recipe.problems.domain)
    rank = max(expert.rank for expert in panel.experts)
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        run=run,
        recipe=recipe,
        panel=panel,
        name=name,
        no_go=no_go,
        base=base,
        licence=licence,
        experts=EXPERTS,
        interval=interval,
        max_rank=next((one for one in LORA_RANKS if one >= rank), rank),
        messages=[dict(one) for one in domain.format(recipe.problems.format).messages(EXAMPLE)],
        versions={name: run.ran_on[name] for name in ("python", *LIBRARIES) if name in run.ran_on},
    )
    return f"---\n{data.to_yaml()}\n---\n\n{text}"


def interval(expert: Expert) -> str:
    """`52.0 [48.8, 55.3], 200 of embedded`, in per cent, of an expert's record."""
    one = expert.record
    if one is None:
        return "not measured"
    numbers = [f"{100 * value:.1f}" for value in (one.accuracy, one.low, one.high)]
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}], {one.problems} of {Path(one.source).name}"
