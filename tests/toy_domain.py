"""A second domain in a folder of its own: words to be spelled backwards. `TOY` is all that it costs."""

import importlib
import sys
from pathlib import Path

import pytest

import rewards

TOY = """
import random
from rewards.domain import Domain
from rewards.formats import Format
from rewards.problems import Problem

def draw_words(split, limit, seed):
    draw = random.Random(f"{split}/{seed}")
    words = dict.fromkeys("".join(draw.choices("abcdefgh", k=6)) for _ in range(limit or 100))
    return [Problem(word, f"Spell {word} backwards.", word[::-1], f"the last letter is {word[-1]}") for word in words]

class Reverse(Domain):
    name = "reverse"
    formats = {"think-boxed": Format("think-boxed", "Spell the word backwards, in a box.", thinks=True)}
    sources = {"words": draw_words}

DOMAIN = Reverse()
"""


def add_toy_domain(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str = TOY) -> None:
    """Put the domain `reverse` beside math until the test is over."""
    (folder / "reverse").mkdir(parents=True)
    (folder / "reverse" / "domain.py").write_text(text)
    monkeypatch.setattr(rewards, "__path__", [*rewards.__path__, str(folder)])
    for module in ("rewards.reverse", "rewards.reverse.domain"):
        # recorded as absent, so that what the test imports is forgotten after it
        monkeypatch.setitem(sys.modules, module, None)
        del sys.modules[module]
    importlib.invalidate_caches()
