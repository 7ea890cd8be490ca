"""What a name on the Hub means: asked of a Hub on this machine, or found in a cache; a run stays with what it found."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from fake_stages import STAGES, Fake
from rich.console import Console

from models.base import context_length, load_base, load_tokenizer
from models.paths import Place, hub_model, model_place
from orchestra.config.faults import RecipeError, UserError
from orchestra.config.loading import load_recipe
from orchestra.run.progress import Progress
from orchestra.run.runner import Run
from settings.hub import HubError, HubName, commit_of

ROOT = Path(__file__).parents[1]
OLD, NEW = "a" * 40, "b" * 40


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Qwen/Qwen2.5-3B", ("Qwen/Qwen2.5-3B", None, None)),
        ("gpt2", ("gpt2", None, None)),
        ("openai/gsm8k:main", ("openai/gsm8k", "main", None)),
        ("openai/gsm8k:main@v1.0", ("openai/gsm8k", "main", "v1.0")),
        ("a/b@refs/pr/1", ("a/b", None, "refs/pr/1")),
        (f"a/b@{OLD}", ("a/b", None, OLD)),
    ],
)
def test_a_name_is_taken_apart_and_put_together(text, parts):
    name = HubName.parse(text)
    assert (name.repo, name.config, name.revision) == parts and str(name) == text
    assert str(name.at(NEW)) == f"{text.partition('@')[0]}@{NEW}"


@pytest.mark.parametrize("text", ["", "a/b/c", "a/b@", "a/b:", "@v1", "a b", "a/b@v1@v2", "a/b@/x", "é/b"])
def test_what_is_no_name(text):
    assert HubName.parse(text) is None


def test_a_folder_is_no_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert hub_model("org/model") is None and model_place("org/model") == Place("org/model")
    assert hub_model("embedded/student") is hub_model("./x") is hub_model("/x") is hub_model("~/x") is None
    assert model_place("org/other@v2") == Place("org/other", "v2")
    assert model_place("org/other") == Place("org/other", "main")


# a Hub on this machine

HUB = """
import json, sys, threading
from http.server import BaseHTTPRequestHandler, HTTPServer
sys.path.insert(0, sys.argv[1])
COMMITS = {("models", "org/model", "main"): "a" * 40, ("models", "org/model", "v2"): "b" * 40,
           ("datasets", "org/set", "main"): "c" * 40}
class Hub(BaseHTTPRequestHandler):
    def do_GET(self):
        _, _, kind, owner, name, *rest = self.path.partition("?")[0].split("/")
        revision, repo = rest[1] if rest else "main", f"{owner}/{name}"
        commit = COMMITS.get((kind, repo, revision))
        known = (kind, repo, "main") in COMMITS
        self.send_response(200 if commit else 404)
        if not commit:
            self.send_header("X-Error-Code", "RevisionNotFound" if known else "RepoNotFound")
        body = json.dumps({"id": repo, "sha": commit} if commit else {"error": "none"}).encode()
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): ...
server = HTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
import os
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
from settings.hub import HubError, HubName, commit_of
for kind, text in json.loads(sys.argv[2]):
    try:
        print(commit_of(kind, HubName.parse(text)))
    except HubError as error:
        print(error)
server.shutdown(); server.server_close()
try:
    print(commit_of("model", HubName.parse("org/model")))
except HubError as error:
    print(error)
"""


def test_the_hub_is_asked(tmp_path):
    """In a process of its own: the client reads HF_ENDPOINT when it is imported."""
    asked = [
        ("model", "org/model"), ("model", "org/model@v2"), ("dataset", "org/set:main"), ("model", "org/model@v3"),
        ("dataset", "org/model"),
    ]  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HTTP", "http"))}
    done = subprocess.run(
        [sys.executable, "-c", HUB, str(ROOT), json.dumps(asked)], capture_output=True, text=True, timeout=120,
        env=environment | {"HF_HOME": str(tmp_path), "NO_PROXY": "*"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second, third, revision, repository, unreachable = done.stdout.splitlines()
    assert (first, second, third) == ("a" * 40, "b" * 40, "c" * 40)
    assert revision == "model 'org/model' has no revision 'v3' on the Hub"
    assert repository.startswith("dataset 'org/model' is not on the Hub, or not to be seen without a token")
    assert unreachable.startswith("model 'org/model': the Hub cannot be asked") and "local path" in unreachable


# a cache


def fill(cache: Path, repo: str, commit: str, *, files: Path | None = None, ref: str | None = None) -> None:
    """As the Hub's client lays a fetched revision down."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for path in files.iterdir() if files is not None else ():
        (snapshot / path.name).symlink_to(path)
    if files is None:
        (snapshot / "config.json").write_text("{}")
    if ref is not None:
        point(cache, repo, ref, commit)


def point(cache: Path, repo: str, ref: str, commit: str) -> None:
    file = cache / f"models--{repo.replace('/', '--')}" / "refs" / ref
    file.parent.mkdir(exist_ok=True)
    file.write_text(commit)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder


def test_without_a_network_the_cache_is_asked(cache):
    with pytest.raises(HubError, match="the cache of this machine does not have it"):
        commit_of("model", HubName.parse("org/tiny"))
    fill(cache, "org/tiny", OLD)
    fill(cache, "org/tiny", NEW, ref="main")
    assert commit_of("model", HubName.parse("org/tiny")) == NEW
    assert commit_of("model", HubName.parse(f"org/tiny@{OLD}")) == OLD
    for kind, name in (("model", "org/tiny@v2"), ("model", "org/other"), ("dataset", "org/tiny")):
        with pytest.raises(HubError, match="local path"):
            commit_of(kind, HubName.parse(name))


def test_a_revision_is_what_is_loaded(cache, tiny_path, tmp_path):
    """The base, its tokenizer and its config, from two commits of one name."""
    other = tiny.write_checkpoint(tmp_path / "other", seed=1)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 128}))
    (other / "chat_template.jinja").write_text("{{ messages[0].content }}")
    fill(cache, "org/tiny", OLD, files=tiny_path)
    fill(cache, "org/tiny", NEW, files=other, ref="main")
    for name, folder in ((f"org/tiny@{OLD}", tiny_path), (f"org/tiny@{NEW}", other), ("org/tiny", other)):
        assert context_length(name) == context_length(str(folder))
        assert load_tokenizer(name).chat_template == load_tokenizer(str(folder)).chat_template
        ours, theirs = (load_base(one, "none", "float32") for one in (name, str(folder)))
        assert torch.equal(ours.lm_head.weight, theirs.lm_head.weight)
    assert context_length(f"org/tiny@{OLD}") != context_length("org/tiny")


@pytest.fixture
def start(tmp_path, monkeypatch):
    """start(base, ...) runs 40d on a base of the Hub with stages that only pretend: (run.json, contexts, said)."""

    def go(base, *sets, restart_from=None, fail=None):
        fake = Fake(fail=fail)
        fake.instead(monkeypatch)
        said = Console(record=True, width=300)
        recipe = load_recipe("40d", "embedded", [f"model.base={base}", *sets])
        Run(recipe, tmp_path / "run", progress=Progress(said)).start(restart_from)
        return json.loads((tmp_path / "run" / "run.json").read_text()), fake, said.export_text()

    return go


def test_a_run_stays_with_its_commit(cache, start):
    fill(cache, "org/tiny", OLD, ref="main")
    fill(cache, "org/tiny", NEW)
    about, fake, said = start("org/tiny")
    assert fake.calls == STAGES and f"org/tiny is commit {OLD}" in said
    assert {context.recipe.model.base for context in fake.contexts.values()} == {f"org/tiny@{OLD}"}
    assert about["recipe"]["model"]["base"] == f"org/tiny@{OLD}"
    # main moves on: the run does not
    point(cache, "org/tiny", "main", NEW)
    about, fake, said = start("org/tiny")
    assert fake.calls == [] and about["recipe"]["model"]["base"] == f"org/tiny@{OLD}" and "is commit" not in said
    # the same commit by another name is no change, another commit is
    assert start(f"org/tiny@{OLD}")[1].calls == []
    for other in (f"org/tiny@{NEW}", "org/tiny@main"):
        with pytest.raises(UserError, match=f"model.base org/tiny@{OLD} -> org/tiny@{NEW}; run again with --restart"):
            start(other)
    # from the beginning on, the name is asked again
    _, fake, _ = start("org/tiny", restart_from="base")
    assert fake.contexts["base"].recipe.model.base == f"org/tiny@{NEW}"


def test_a_begun_stage_goes_on_with_its_commit(cache, start):
    fill(cache, "org/tiny", OLD, ref="main")
    fill(cache, "org/tiny", NEW)
    with pytest.raises(UserError, match="broken"):
        start("org/tiny", fail={"base": ValueError("broken")})
    point(cache, "org/tiny", "main", NEW)
    assert start("org/tiny")[1].contexts["base"].recipe.model.base == f"org/tiny@{OLD}"


def test_teacher_and_problems_have_commits_too(cache, start):
    fill(cache, "org/tiny", OLD, ref="main")
    fill(cache, "org/teacher", NEW, ref="main")
    sets = ["stages.traces.teacher=org/teacher"]
    about, fake, _ = start("org/tiny", *sets)
    assert about["recipe"]["stages"][0]["teacher"] == f"org/teacher@{NEW}"
    assert fake.contexts["traces"].stage.teacher == f"org/teacher@{NEW}"


def test_the_base_by_another_name_is_no_teacher(cache, start):
    fill(cache, "org/tiny", OLD, ref="main")
    with pytest.raises(RecipeError, match="is the base itself"):
        start("org/tiny", f"stages.traces.teacher=org/tiny@{OLD}")


def test_a_name_that_nobody_knows_stops_the_run_before_it_begins(cache, start, tmp_path):
    with pytest.raises(HubError, match="org/nowhere"):
        start("org/nowhere")
    assert not list((tmp_path / "run").glob("[0-9]*"))
