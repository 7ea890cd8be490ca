"""Whatever a run writes is JSON as everybody reads it: no NaN, no infinity, also where a stage's numbers are none."""

import dataclasses
import json
import math

from fake_stages import Fake
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from orchestra.config.loading import load_recipe
from orchestra.report.data import read_run
from orchestra.run.ledger import Fingerprint, Ledger, LedgerEntry, StageResult, write_json
from orchestra.run.progress import Progress
from orchestra.run.runner import Run
from orchestra.run.show import as_json, results_of

NUMBERS = [field.name for field in dataclasses.fields(StageResult) if field.type == "float | None"]


def strict(text):
    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.sampled_from(NUMBERS), st.none() | st.floats()),
    st.dictionaries(st.text(max_size=5), st.floats() | st.text(max_size=5), max_size=3),
)
def test_a_result_of_any_numbers_is_json_and_comes_back(numbers, extra):
    """A number that is none is not told; every other one comes back to the last digit."""
    result = StageResult("a", "grpo", extra=extra, **numbers)
    again = StageResult.from_json(strict(as_json([result]))[0])
    known = {key: value for key, value in numbers.items() if value is not None and math.isfinite(value)}
    assert {key: getattr(again, key) for key in NUMBERS} == dict.fromkeys(NUMBERS) | known
    assert again.extra == {key: one for key, one in extra.items() if isinstance(one, str) or math.isfinite(one)}
    assert again == StageResult.from_json(again.to_json()), "once written it stays as it is"


def test_all_files_of_a_run_whose_numbers_are_none(tmp_path, monkeypatch):
    nan = math.nan

    class Odd(Fake):
        def __call__(self, context):
            result = super().__call__(context)
            extra = {"engine_mismatch": nan, "kl_to_base": math.inf, "kept": 3.0}
            return dataclasses.replace(result, accuracy=nan, low=-math.inf, kl=nan, extra=extra)

    Odd().instead(monkeypatch)
    recipe = load_recipe("40d", "embedded", ["stages.explore.gate={min_difference: -1}"])
    with open(tmp_path / "said.txt", "w", encoding="utf-8") as out:
        run = Run(recipe, tmp_path / "run", plan={"seconds": 1.0}, progress=Progress(Console(file=out, width=200)))
        assert run.start().verdict == "NO-GO", "what is no number passes no gate"
        files = sorted((tmp_path / "run").rglob("*.json*"))
        assert {path.name for path in files} >= {
            "run.json",
            "ledger.json",
            "config.json",
            "result.json",
            "traces.jsonl",
        }
        for path in files:
            for text in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
                strict(text)
        results = results_of(tmp_path / "run")
        assert [(one.accuracy, one.kl, sorted(one.extra)) for one in results] == [
            (None, None, ["kept", "peak_memory_bytes"])
        ] * 4
        assert strict(as_json(results))[0]["low"] is None and read_run(tmp_path / "run").notes == ()
        run.start("explore")
    strict((tmp_path / "run" / "discarded-1" / "results.json").read_text())


def test_what_is_no_number_is_written_as_null(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": [1.5, math.nan, math.inf]})
    assert strict(path.read_text()) == {"a": [1.5, None, None]}
    Ledger(tmp_path).record(LedgerEntry("01-a", Fingerprint({}, {}, {}), {}, StageResult("a", "sft", kl=math.nan)))
    strict((tmp_path / "ledger.json").read_text())
