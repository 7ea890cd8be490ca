"""Faults for people from pydantic's errors: what is wrong, what is allowed, what was probably meant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from orchestra.config.faults import Fault, brief
from orchestra.config.recipe import Recipe
from orchestra.stages import kinds
from settings import SLUG, near, node_in

NEEDED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "model_type": "a mapping (`key: value`)",
    "model_attributes_type": "a mapping (`key: value`)",
    "dict_type": "a mapping (`key: value`)",
}


def faults_from(errors: list[ErrorDetails], raw: Mapping[str, Any]) -> list[Fault]:
    """One fault per error, with the stage's name where it lies in a stage."""
    return [_fault(error, raw) for error in errors]


def model_at(path: tuple[str | int, ...], raw: Mapping[str, Any]) -> type[BaseModel] | None:
    """The schema class that describes the mapping at this place, if it is one."""
    model: type[BaseModel] | None = Recipe
    if path[:1] == ("stages",):
        if len(path) < 2 or not isinstance(path[1], int):
            return None
        stage = raw["stages"][path[1]]
        kind = stage.get("kind") if isinstance(stage, Mapping) else None
        model, path = kinds().get(kind) if isinstance(kind, str) else None, path[2:]
    for key in path:
        field = model.model_fields.get(str(key)) if model is not None else None
        model = None if field is None else node_in(field.annotation)
    return model


def stage_label(path: tuple[str | int, ...], raw: Mapping[str, Any]) -> str | None:
    """Name (or number) of the stage that the path lies in."""
    if path[:1] != ("stages",) or len(path) < 2 or not isinstance(path[1], int):
        return None
    stage = raw["stages"][path[1]]
    name = stage.get("name") if isinstance(stage, Mapping) else None
    return name[:60] if isinstance(name, str) else f"number {path[1] + 1}"


def _fault(error: ErrorDetails, raw: Mapping[str, Any]) -> Fault:
    path = tuple(error["loc"])
    if path[:1] == ("stages",) and len(path) > 2 and path[2] in kinds():
        path = path[:2] + path[3:]  # pydantic inserts the discriminator's value
    # and words of its own in brackets: `[key]`, and which form a value was taken for (settings.by_form)
    # an unknown key is the user's, whatever it looks like
    own = path[-1:] if error["type"] == "extra_forbidden" else ()
    path = (
        tuple(key for key in path[: len(path) - len(own)] if not (isinstance(key, str) and key.startswith("["))) + own
    )
    return Fault(path, _message(error, path, raw), stage=stage_label(path, raw))


def _message(error: ErrorDetails, path: tuple[str | int, ...], raw: Mapping[str, Any]) -> str:
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    model = model_at(path[:-1], raw)
    field = model.model_fields.get(str(path[-1])) if model is not None and path else None
    said = (field.description or "").rstrip(".").replace("\n", " ") if field is not None else ""
    match kind:
        case "extra_forbidden":
            keys = list(model.model_fields) if model is not None else []
            possible = ", ".join(keys)
            return "unknown key" + (near(path[-1], keys) or f" (possible: {possible})")
        case "missing":
            return f"missing; {said[:1].lower() + said[1:] if said else 'add it'}"
        case "literal_error":
            options = _options(context.get("expected", ""))
            return f"{brief(value)} is not one of {', '.join(options)}{near(value, options)}"
        case "union_tag_invalid":
            return (
                f"kind: {brief(value.get('kind'))} is not one of {', '.join(kinds())}{near(value.get('kind'), kinds())}"
            )
        case "union_tag_not_found":
            return f"kind: missing; one of {', '.join(kinds())}"
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            bound = next(context[key] for key in ("gt", "ge", "lt", "le") if key in context)
            words = {"greater_than": "more than", "greater_than_equal": "at least", "less_than": "less than"}
            return f"{brief(value)} must be {words.get(kind, 'at most')} {bound:g}"
        case "string_pattern_mismatch" if context.get("pattern") != SLUG:
            return f"{brief(value)} is not of the form that is wanted: {said}"
        case "string_pattern_mismatch":
            return f"{brief(value)}: use lower-case letters, digits, '-' and '_', starting with a letter or digit"
        case "string_too_short" | "too_short":
            return "must not be empty"
        case "string_too_long" | "too_long":
            return f"{brief(value)} is too long (at most {context.get('max_length')})"
        case "finite_number":
            return f"{value} is not a finite number"
        case "rule":
            return error["msg"]
    if kind in NEEDED:
        if value is None:
            return f"has no value; {NEEDED[kind]} is needed"
        hint = ""
        if isinstance(value, str) and kind[:3] in ("int", "flo") and _is_number(value):
            hint = "; remove the quotes"
        if kind == "model_type" and path and model_at(path, raw) is not None:
            hint = f" with {', '.join(model_at(path, raw).model_fields)}"
        return f"{brief(value)} is {_kind_of(value)}; {NEEDED[kind]} is needed{hint}"
    return f"{brief(value)}: {error['msg']}"


def _options(expected: str) -> list[str]:
    return expected.replace(" or ", ", ").replace("'", "").split(", ")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _kind_of(value: object) -> str:
    if isinstance(value, bool):
        return "a truth value"
    if isinstance(value, int):
        return "a whole number"
    names = {str: "text", float: "a decimal number", list: "a list", tuple: "a list", dict: "a mapping"}
    return names.get(type(value), "something else")
