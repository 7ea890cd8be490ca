"""From a finished run to the Hub and back, by the command line, through the Hub's own client."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import finished_run
import pytest
import tiny
import torch
from hub_server import TOKEN, USER, Repo, Rule, environment, hub
from huggingface_hub import ModelCard

from models.base import load_tokenizer
from models.hub import Remote
from orchestra.run.folder import read_json
from orchestra.work.publishing import why_ask

ROOT = Path(__file__).parents[3]
STORY = """
import json, sys
from orchestra.cli import app
def load(repo, ids):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained(repo)
    tokenizer = AutoTokenizer.from_pretrained(repo)
    print(json.dumps([model(__import__("torch").tensor([ids])).logits[0].tolist(), tokenizer.chat_template]))
for step in json.loads(sys.argv[1]):
    try:
        load(*step[1:]) if step[0] == "load" else app(step, standalone_mode=False)
    except Exception as error:
        print("refused:", error if getattr(error, "user_message", False) else repr(error))
    print("----", flush=True)
"""


@pytest.fixture(scope="module")
def finished(tiny_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return finished_run.write(finished_run.recipe(tiny_path, folder), folder / "small-embedded")


@pytest.fixture
def server():
    with hub() as one:
        yield one


@pytest.fixture
def story(server, tmp_path):
    """story(arguments, ...): what the command said to each, one process for all of them."""

    def go(*steps, token=TOKEN):
        own = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HTTP", "http"))}
        done = subprocess.run(
            [sys.executable, "-c", STORY, json.dumps(steps)], capture_output=True, text=True, timeout=300, cwd=ROOT,
            env=own | environment(server, tmp_path / "home", token),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert TOKEN not in done.stdout + done.stderr
        said = done.stdout.split("----\n")[:-1]
        assert len(said) == len(steps)
        return said

    return go


def test_published_loaded_from_there_and_again(finished, server, story, tmp_path, tiny_path):
    run, to = shutil.copytree(finished, tmp_path / finished.name), f"hub:{USER}/model"
    export = ["export", str(run), "--to", to, "--dtype", "float32"]
    ids = list(range(60, 90))
    dry, first, loaded, again = story([*export, "--dry-run"], export, ["load", f"{USER}/model", ids], export)
    assert f"hub:{USER}/model (a new private repository), not published:" in dry
    assert "model.safetensors" in dry and "adapters/polish/adapter_model.safetensors" in dry and "KiB to send" in dry
    assert f"{server.url}/{USER}/model: published, commit" in first
    assert f"{server.url}/{USER}/model: is there already, commit" in again
    repo = server.repos[f"{USER}/model"]
    assert repo.private and len(repo.commits) == 2 and read_json(run / "published.json").keys() == {f"{USER}/model"}
    # what came back is the policy
    logits, template = json.loads(loaded)
    ours = tiny.next_token_logprobs(tiny.policy(tiny_path, seed=2), ids)
    assert torch.allclose(torch.tensor(logits).log_softmax(-1)[: len(ours)], ours, atol=1e-4)
    assert template == load_tokenizer(str(tiny_path)).chat_template
    files = {path.relative_to(run / "export").as_posix() for path in (run / "export").rglob("*") if path.is_file()}
    assert set(repo.files()) == files
    assert TOKEN not in "".join(path.read_text(errors="replace") for path in run.rglob("*") if path.is_file())


@pytest.mark.slow
def test_what_another_put_there_is_not_overwritten_unasked(finished, server, story, tmp_path):
    run, other = (shutil.copytree(finished, tmp_path / name) for name in ("small-embedded", "other-embedded"))
    to = ["--to", "hub:model", "--what", "adapter"]
    server.put(f"{USER}/notes", {"thesis.tex": b"dear"})
    ours, theirs = ["export", str(run), *to], ["export", str(other), *to, "--stage", "explore"]
    server.repos[f"{USER}/open"] = Repo(private=False)
    elsewhere = [["export", str(run), "--to", f"hub:{name}", "--what", "adapter"] for name in ("notes", "open")]
    first, refused, replaced, moved, dry, notes, public = story(
        ours, theirs, [*theirs, "--replace"], ours, [*ours, "--dry-run"], *elsewhere
    )
    assert "it has moved on since this run published to it" in dry and "(a private repository), not published" in dry
    assert f"refused: hub:{USER}/open is a public repository; --public" in public
    assert "published, commit" in first
    assert f"refused: hub:{USER}/model holds the export of another run" in refused and "--replace" in refused
    assert "published, commit" in replaced and list(server.repos[f"{USER}/model"].files()) != []
    assert "adapters/explore/adapter_model.safetensors" in server.repos[f"{USER}/model"].files()
    assert "adapters/polish/adapter_model.safetensors" not in server.repos[f"{USER}/model"].files()
    assert f"refused: hub:{USER}/model has moved on since this run published to it" in moved
    assert f"refused: hub:{USER}/notes holds other files (1 files" in notes
    assert server.repos[f"{USER}/notes"].files() == {"thesis.tex": b"dear"}


@pytest.mark.slow
def test_nothing_is_merged_for_a_token_that_may_not_write(finished, server, story, tmp_path):
    run = shutil.copytree(finished, tmp_path / finished.name)
    anothers, wrong = story(["export", str(run), "--to", "hub:bob/model"], ["export", str(run), "--to", "hub:a b"])
    assert "refused: hub:bob/model: the token is of 'ann'" in anothers and not (run / "export").exists()
    assert "refused: --to hub:a b" in wrong
    (none,) = story(["export", str(run), "--to", "hub:model"], token=None)
    assert "refused: hub:model: there is no Hub token here" in none


@pytest.mark.slow
def test_an_upload_that_breaks_off_goes_on_without_merging_again(finished, server, story, tmp_path):
    run = shutil.copytree(finished, tmp_path / finished.name)
    server.rules.append(Rule("POST", "/commit/", 0))
    export = ["export", str(run), "--to", "hub:model"]
    (broken,) = story(export)
    assert "nothing was published: the connection broke off" in broken
    merged = (run / "export" / "model.safetensors").stat().st_mtime_ns
    server.rules.clear()
    server.asked.clear()
    (done,) = story(export)
    assert "published, commit" in done and not server.sent("PUT", "/lfs/")
    assert (run / "export" / "model.safetensors").stat().st_mtime_ns == merged


def test_when_it_asks():
    theirs, ours = {"export.json": "x", "model.safetensors": "y"}, "c" * 40
    assert why_ask(Remote(), None) is None

    def there(files, commit=ours):
        return Remote(commit, exists=True, files=files)

    assert why_ask(there({}), None) is None, "a repository without files"
    assert why_ask(there(theirs), ours) is None, "as this run left it"
    assert why_ask(there(theirs, "d" * 40), ours).startswith("has moved on")
    assert why_ask(there(theirs), None).startswith("holds the export of another run (2 files")
    assert why_ask(there({"a": "b"}), None).startswith("holds other files (1 files")


@pytest.mark.slow
def test_the_card_says_what_was_measured(finished, tmp_path):
    from orchestra.cli_export import export_run

    run = shutil.copytree(finished, tmp_path / finished.name)
    export_run(run, str(tmp_path / "here"), None, {"dtype": "float32"})
    card = ModelCard.load(tmp_path / "here" / "README.md")
    assert card.data.library_name == "transformers" and "base_model" not in card.data.to_dict()
    (result,) = {one.metric_name: one for one in card.data.eval_results if "greedy" in one.metric_name}.values()
    evaluation = json.loads((run / "02-polish" / "evaluation.json").read_text())
    assert result.metric_value == round(evaluation["greedy"]["accuracy"]["estimate"], 4)
    assert result.metric_args["problems"] == len(tiny.QUESTIONS)
    record = json.loads((tmp_path / "here" / "export.json").read_text())
    text = card.text
    assert f"KL(policy || files): {record['fidelity']['kl']:.2g} nats" in text
    assert "| explore | grpo | 0.01 | start |" in text and "Not reloaded by vllm" in text
    assert "rank\n4 on a frozen 4-bit (NF4) base" in text and "name: small" in text
    assert "licence of the base: not known" in text.lower()
