"""Recipes whose stages change a panel by hand."""

from orchestra.config.recipe import Recipe

TRACES = {"name": "traces", "kind": "distill", "teacher": "embedded/teacher"}
LONE = {"kind": "sft", "data": "traces", "steps": 3, "learning_rate": 1e-3, "preflight": False}
ONE, OTHER, THIRD = ({"name": name, "expert": name, **LONE} for name in ("one", "other", "third"))
EACH = {"name": "experts", "expert": "each", **LONE}
ROUTE = {"name": "choose", "kind": "route"}
GROW = {"name": "wider", "kind": "grow", **{key: LONE[key] for key in LONE if key != "kind"}}
AGAIN = {"name": "again", "kind": "route"}


def change(what, name="changed", **keys):
    return {"name": name, "kind": "panel", "change": what, **keys}


def recipe(*stages, **sections):
    return Recipe.model_validate(
        {
            "name": "changed",
            "model": {"base": "embedded/student"},
            "problems": {"train": "embedded", "test": "embedded"},
            "stages": [TRACES, *stages],
            **sections,
        }
    )
