"""A runner for stages that only pretend."""

import pytest
from rich.console import Console

from orchestra.config.loading import load_recipe
from orchestra.run import runner
from orchestra.run.progress import Progress


@pytest.fixture
def start(tmp_path, monkeypatch):
    """start(fake, sets=..., restart_from=...) -> (outcome, what was said)."""

    def go(fake, sets=(), restart_from=None):
        fake.instead(monkeypatch)
        recipe = load_recipe("40d", "embedded", sets)
        file = tmp_path / "said.txt"
        with open(file, "w", encoding="utf-8") as out:
            one = runner.Run(
                recipe,
                tmp_path / "runs" / "40d-embedded",
                progress=Progress(Console(file=out, width=200)),
            )
            outcome = one.start(restart_from)
        return outcome, file.read_text()

    go.run_dir = tmp_path / "runs" / "40d-embedded"
    return go
