"""The recipes on real problems, in files, with the embedded student: everything goes through, whatever comes out."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from orchestra import RECIPES
from orchestra.config.experiment import load_experiment
from orchestra.config.loading import available

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "problems"
GSM8K, MATH = "openai/gsm8k", "nlile/hendrycks-MATH-benchmark"
FILES = {GSM8K: ("gsm8k_train.jsonl", "gsm8k_test.jsonl"), MATH: ("math_train.jsonl", "math500.jsonl")}
NAMES = sorted(available())
# few steps and few questions; as many samples as a student needs that gets one in a hundred right
SCALE = """
model: {base: embedded/student, lora: {rank: 4, alpha: 8}}
problems: {train_limit: 1500, test_limit: 30}
rollouts: {group_size: 4, prompts_per_step: 4, max_completion_tokens: 96, max_prompt_tokens: 300}
evaluate: {samples: 1, perplexity: 16}
kinds:
  distill: {teacher: embedded/teacher, problems: 900, samples: 2, max_tokens: 96, min_tokens: 4}
  sft: {steps: x 0.008, batch_size: 8, learning_rate: x 10, evaluate_every: x 0.016, preflight: {problems: 16}}
  grpo: {steps: 1, learning_rate: x 50}
  probe: {problems: 8, places: {every: 8}}
"""

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real problems at {DATA}")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory whose recipes are the shipped ones with the files for the names."""
    (tmp_path / "recipes" / "scales").mkdir(parents=True)
    (tmp_path / "recipes" / "scales" / "few.yaml").write_text(SCALE)
    for files in FILES.values():
        for file in files:
            # some rows have no answer, and are to be dropped, as the message says
            rows = [row for row in (DATA / file).read_text(encoding="utf-8").split("\n") if row]
            kept = [row for row in rows if json.loads(row)["answer"]]
            (tmp_path / file).write_text("\n".join(kept), encoding="utf-8")
    for path in RECIPES.glob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        for name, (train, test) in FILES.items():
            text = re.sub(rf"\btrain: {re.escape(name)}", f"train: {tmp_path / train}", text)
            text = text.replace(name, str(tmp_path / test))
        (tmp_path / "recipes" / path.name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", ["embedded", "few", "gpu"])
def test_every_recipe_takes_them_at_every_scale(folder, name, scale):
    """A file stays what it is: no scale puts generated problems in its place."""
    for recipe in load_experiment(name, scale).named.values():
        sources = [recipe.problems.train, recipe.problems.test]
        sources += [one for stage in recipe.all_stages for one, _ in stage.held_out_sets(recipe).values()]
        assert all(Path(one).parent == folder for one in sources), sources


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_goes_through(folder, name):
    command = [sys.executable, "-m", "orchestra", "run", name, "--scale", "few", "--seeds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    (place,) = (folder / "runs").iterdir()
    about = json.loads((place / "experiment.json").read_text())
    for arm, recipe in load_experiment(name, "few").named.items():
        run = place / arm / f"seed-{about['seeds'][0]}"
        finished = {json.loads(path.read_text())["name"] for path in run.glob("*/result.json")}
        assert finished == {stage.name for stage in recipe.all_stages}
    assert (place / "report.html").is_file()
