"""Errors that a person reads: one message, which says what is wrong, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


class UserError(Exception):
    """A mistake outside the program: its message is shown as it is, without a traceback.

    Components below `orchestra` raise their own exceptions; a class attribute `user_message = True` asks for the
    same treatment (`is_user_error`).
    """

    user_message = True


def is_user_error(error: BaseException) -> bool:
    """Whether the message of this exception was written for the user."""
    return getattr(error, "user_message", False) is True


@dataclass(frozen=True)
class Fault:
    """One mistake in a recipe, a scale or an override."""

    path: tuple[str | int, ...]
    """Where: keys and list positions from the top of the file."""
    message: str
    """What is wrong, and the remedy."""
    where: str = ""
    """File and line, or the override."""
    stage: str | None = None
    """Name of the stage it is in, or `number 3` where that has no name; None outside the stages."""

    def __str__(self) -> str:
        keys = self.path[2:] if self.stage is not None else self.path
        stage = "" if self.stage is None else f"stage {self.stage if ' ' in self.stage else repr(self.stage)}"
        return ": ".join(part for part in (self.where, stage, dotted(keys), self.message) if part)


class RecipeError(UserError):
    """Every fault found in a recipe, a line each."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(dict.fromkeys(str(fault) for fault in self.faults)))


def dotted(path: Iterable[str | int]) -> str:
    """`("model", "lora", "rank")` -> `model.lora.rank`."""
    return ".".join(str(key) for key in path)


def brief(value: object, limit: int = 60) -> str:
    """The value as it would be quoted in a message, cut to `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
