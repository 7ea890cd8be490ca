"""The JSON Schema of recipe files, by which editors complete and check them."""

from __future__ import annotations

import json
from typing import Any

from orchestra.config.arms import ExperimentKeys
from orchestra.config.recipe import Recipe


def json_schema() -> str:
    """A recipe, and what a recipe file may say besides; of one that `extends` another the parts that are different."""
    whole = Recipe.model_json_schema()
    more = ExperimentKeys.model_json_schema()
    definitions = whole.pop("$defs") | more.get("$defs", {})
    made = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": whole.pop("title"),
        "description": whole.pop("description"),
        "if": {"required": ["extends"]},
        "then": {
            **whole,
            "required": ["name"],
            "properties": {key: _partial(key, of, definitions) for key, of in whole["properties"].items()}
            | more["properties"],
        },
        "else": whole | {"properties": whole["properties"] | more["properties"]},
        "$defs": definitions,
    }
    return json.dumps(made, indent=1) + "\n"


def _partial(key: str, of: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """A key of a file that need not say all of it; stages are changed by name (null takes one out)."""
    if key == "stages":
        by_name = {"type": "object", "additionalProperties": {"anyOf": [{"type": "object"}, {"type": "null"}]}}
        return {"anyOf": [of, by_name], "description": of.get("description", "")}
    if key == "name":
        return of
    if "$ref" not in of:
        return _or_null(of)
    section = definitions[of["$ref"].rpartition("/")[2]]
    partly = {name: value for name, value in section.items() if name != "required"}
    own = {name: _partial(name, value, definitions) for name, value in section.get("properties", {}).items()}
    return _or_null(partly | {"properties": own} if own else partly)


def _or_null(of: dict[str, Any]) -> dict[str, Any]:
    """The same, or null: what the other recipe says of it does not hold here, but its default."""
    return {"anyOf": [of, {"type": "null"}]} | ({"description": of["description"]} if "description" in of else {})
