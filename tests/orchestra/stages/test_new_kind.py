"""A kind of stage in a file of its own is checked, planned, run, resumed, shown and reported; nothing else changes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]
KIND = '''
"""weigh: how large the adapters of several earlier stages are."""

from __future__ import annotations

import json
import os
from typing import Annotated, ClassVar, Literal

from orchestra.config.stage import Stage
from settings import Names, Refers


class WeighStage(Stage):
    """Sizes of adapters."""

    outputs: ClassVar[tuple[str, ...]] = ("statistics.json",)

    kind: Literal["weigh"]
    """weigh"""
    of: Annotated[Names, Refers("policy")]
    """The stages whose adapters are weighed."""
    unit: Literal["bytes", "bits"] = "bytes"
    """What is counted."""

    def parents(self, earlier):
        return self.of

    def faults(self, draft):
        if len(set(self.of)) < len(self.of):
            yield "of", "names a stage twice; once is enough"

    def plan(self, estimator):
        return estimator.row(self, (0, 12.0), estimator.serving(), data=f"{len(self.of)} adapters")

    def summary(self, recipe):
        return f"weigh {' and '.join(recipe.parents_of(self.name))}"

    @classmethod
    def report(cls, record):
        from orchestra.report.parts import Counts

        yield Counts(f"weights of {record.name}", record.statistics)

    def run(self, context):
        if os.environ.get("WEIGH_FAILS"):
            raise ValueError("the scales are broken")
        factor = 8 if self.unit == "bits" else 1
        sizes = {name: factor * (context.adapter_of(name) / "adapter_model.safetensors").stat().st_size
                 for name in context.parents}
        (context.folder / "statistics.json").write_text(json.dumps(sizes))
        return context.result(total=sum(sizes.values()))
'''
RECIPE = """
name: weighed
seed: 3
model:
  base: embedded/student
  lora: {rank: 4, alpha: 8}
problems: {train: embedded, test: embedded, train_limit: 20, test_limit: 4}
rollouts: {group_size: 2, prompts_per_step: 2, max_completion_tokens: 24, max_prompt_tokens: 96, engine: transformers}
evaluate: {samples: 1, greedy: false}
stages:
  - {name: one, kind: sft, data: data.jsonl, steps: 1, batch_size: 2, learning_rate: 1e-3}
  - {name: two, kind: sft, data: data.jsonl, steps: 2, batch_size: 2, learning_rate: 1e-3, parent: base}
  - {name: scales, kind: weigh, of: [one, two]}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory with the kind in kinds/, the recipe, and data to imitate."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "kinds").mkdir()
    (folder / "kinds" / "weigh.py").write_text(KIND)
    (folder / "weighed.yaml").write_text(RECIPE)
    rows = [{"question": f"What is {n} + 1?", "answer": f"{n + 1}", "solution": f"{n}+1={n + 1}"} for n in range(6)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def orchestra(place: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    import os

    command = [sys.executable, str(TESTS / "driver.py"), f"stages={place / 'kinds'}", "--", *arguments]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=300, env=os.environ | environment)


RUN = ("run", "weighed.yaml", "--scale", "none")


def test_checked(place):
    done = orchestra(place, "check", "weighed.yaml", "--scale", "none")
    assert done.returncode == 0 and "3 stages, valid" in done.stdout, done.stderr
    bad = RECIPE.replace("of: [one, two]", "of: [one, on, one], unit: kilos")
    (place / "bad.yaml").write_text(bad)
    done = orchestra(place, "check", "bad.yaml", "--scale", "none")
    assert done.returncode == 1 and "'kilos' is not one of bytes, bits" in done.stderr
    assert "stage 'scales': of: 'on' is not an earlier stage (earlier: one, two); did you mean 'one'?" in done.stderr
    (place / "bad.yaml").write_text(RECIPE.replace("of: [one, two]", "of: [one, one]"))
    assert "names a stage twice" in orchestra(place, "check", "bad.yaml", "--scale", "none").stderr


def test_without_the_file_the_kind_is_unknown(place):
    done = subprocess.run(
        [sys.executable, str(TESTS / "driver.py"), "--", "check", "weighed.yaml"],
        cwd=place, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "kind: 'weigh' is not one of distill, evaluate, export, grow, grpo, merge, mixture, panel" in done.stderr


def test_in_the_schema(place):
    orchestra(place, "schema", "--to", "schema.json")
    assert "WeighStage" in json.loads((place / "schema.json").read_text())["$defs"]


def test_planned(place):
    done = orchestra(place, "plan", "weighed.yaml", "--scale", "none", "--json")
    row = json.loads(done.stdout)["stages"][-1]
    assert (row["name"], row["kind"], row["data"], row["parent"]) == ("scales", "weigh", "2 adapters", "one, two")
    assert row["seconds"] == 12.0 + 5.0, "its own and what every stage takes"


def test_run_resumed_shown_reported(place):
    """Fails in its own stage, goes on there, is found finished, and is noticed when its own file changes."""
    broken = orchestra(place, *RUN, WEIGH_FAILS="1")
    assert broken.returncode == 1 and "the scales are broken" in broken.stderr, broken.stderr
    done = orchestra(place, *RUN)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("finished before") == 3 and "[3/3] scales: weigh one and two" in done.stdout
    again = orchestra(place, *RUN)
    assert again.stdout.count("finished before") == 4
    run = place / "runs" / "weighed-none"
    sizes = json.loads((run / "03-scales" / "statistics.json").read_text())
    assert set(sizes) == {"one", "two"} and min(sizes.values()) > 1000
    shown = json.loads(orchestra(place, "show", "weighed-none", "--json").stdout)
    assert shown[-1]["kind"] == "weigh" and shown[-1]["extra"]["total"] == sum(sizes.values())
    assert orchestra(place, "report", "weighed-none").returncode == 0
    assert "weights of scales" in (run / "report.html").read_text()

    print_ = json.loads((run / "ledger.json").read_text())["stages"][-1]["fingerprint"]
    assert {"adapter of stage one", "adapter of stage two"} <= set(print_["inputs"])
    (place / "kinds" / "weigh.py").write_text(KIND.replace("factor = 8", "factor = 80"))
    changed = orchestra(place, *RUN)
    assert "stage 'scales' is finished, but since then changed: code orchestra.stages.weigh;" in changed.stderr
    (place / "kinds" / "weigh.py").write_text(KIND)
    (run / "03-scales" / "statistics.json").write_text("{}")
    assert "is not what the stage wrote" in orchestra(place, *RUN).stderr
