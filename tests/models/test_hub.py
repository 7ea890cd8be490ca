"""Publishing, through the Hub's own client, to a Hub on this machine: one commit that holds the folder, or none."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hub_server import FIRST, ORGANISATION, TOKEN, USER, Repo, Rule, environment, hub

ROOT = Path(__file__).parents[2]
# as a user's process would, but without the client's patience between its retries
PUBLISH = """
import dataclasses, json, sys, time
time.sleep = lambda seconds: None
from pathlib import Path
from models.hub import Publisher, Target
from settings.hub import HubError
try:
    folder = Path(sys.argv[1])
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    publisher = Publisher(Target(**json.loads(sys.argv[2])), files, {})
    remote = publisher.look()
    changes = {one.path: [one.size, one.what] for one in publisher.changes(remote)}
    print("looked", flush=True)
    if sys.argv[3:]:
        sys.stdin.readline()
    done = publisher.publish(remote, "a policy", lambda text: print(text, file=sys.stderr, flush=True))
    publisher.finish(done)
    print(json.dumps({"changes": changes, "done": dataclasses.asdict(done)}))
except HubError as error:
    sys.exit(str(error))
"""


MODEL = json.dumps({"repo": "model", "private": True})


@pytest.fixture
def server():
    with hub() as one:
        yield one


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "model"
    (made / "adapters" / "polish").mkdir(parents=True)
    (made / "config.json").write_text('{"a": 1}')
    (made / "README.md").write_text("---\nlicense: mit\n---\n")
    (made / "model.safetensors").write_bytes(bytes(range(256)) * 4096)  # 1 MiB
    (made / "adapters" / "polish" / "adapter_model.safetensors").write_bytes(b"an adapter" * 999)
    return made


@pytest.fixture
def publish(server, folder, tmp_path):
    """publish(repo, ...): (what it would change, what it did), or the one line that it said instead."""

    def go(repo="model", token=TOKEN, **options):
        done = subprocess.run(
            [sys.executable, "-c", PUBLISH, str(folder), json.dumps({"repo": repo, "private": True} | options)],
            capture_output=True, text=True, timeout=120, cwd=ROOT, env=_environment(server, tmp_path, token),
        )  # fmt: skip
        assert TOKEN not in done.stdout + done.stderr, "the token is nobody's business"
        if done.returncode:
            assert "Traceback" not in done.stderr, done.stderr
            return done.stderr.strip().splitlines()[-1]
        found = json.loads(done.stdout.splitlines()[-1])
        return found["changes"], found["done"]

    return go


def _environment(server, home, token=TOKEN):
    own = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HTTP", "http"))}
    return own | environment(server, home / "home", token)


def local(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_one_private_repository_one_commit_exactly_the_folder(server, publish, folder):
    changes, done = publish()
    repo = server.repos[f"{USER}/model"]
    assert repo.private and repo.files() == local(folder) and len(repo.commits) == 2
    assert all(what == "new" for _, what in changes.values())
    assert changes["model.safetensors"] == [2**20, "new"]
    assert done == {"url": f"{server.url}/{USER}/model", "commit": repo.branches["main"], "changed": True}


def test_again_is_nothing_at_all(server, publish, folder):
    _, first = publish()
    server.asked.clear()
    changes, again = publish()
    assert {what for _, what in changes.values()} == {"same"}
    assert again == first | {"changed": False} and not server.sent("POST", "/commit/") and not server.sent("PUT", "")


def test_what_is_no_longer_in_the_folder_goes_with_the_same_commit(server, publish, folder):
    """A shard of an earlier, larger export would be loaded along with the new ones."""
    publish()
    (folder / "config.json").write_text('{"a": 2}')
    (folder / "adapters" / "polish" / "adapter_model.safetensors").unlink()
    server.large.clear()
    changes, _ = publish()
    assert {path: what for path, (_, what) in changes.items()} == {
        "README.md": "same", "config.json": "changed", "model.safetensors": "same",
        "adapters/polish/adapter_model.safetensors": "gone",
    }  # fmt: skip
    repo = server.repos[f"{USER}/model"]
    assert repo.files() == local(folder) and len(repo.commits) == 3 and not server.large


def test_public_an_organisations_a_branch_a_tag(server, publish, folder):
    _, done = publish(f"{ORGANISATION}/model", private=False, revision="v2", tag="first")
    repo = server.repos[f"{ORGANISATION}/model"]
    assert not repo.private and repo.files("v2") == local(folder) and repo.branches["main"] == FIRST
    assert repo.tags == {"first": done["commit"]} == {"first": repo.branches["v2"]}
    assert publish(f"{ORGANISATION}/model", revision="v2", tag="first")[1]["changed"] is False
    (folder / "config.json").write_text("{}")
    said = publish(f"{ORGANISATION}/model", revision="v2", tag="first")
    assert "nothing was published: the tag 'first' is on commit" in said
    assert repo.branches["v2"] == done["commit"], "known before anything is sent"


def test_the_connection_breaks_off_and_the_same_command_goes_on(server, publish, folder):
    """Nothing is to be seen meanwhile, and what has arrived is not sent again."""
    # the adapter arrives, the model is cut off each time that the client tries
    model = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    server.rules.append(Rule("PUT", model, 0))
    said = publish()
    assert "nothing was published: the connection broke off" in said and "the same command goes on" in said
    assert server.repos[f"{USER}/model"].files() == {} and len(server.large) == 1
    server.rules.clear()
    server.asked.clear()
    publish()
    assert server.repos[f"{USER}/model"].files() == local(folder) and server.sent("PUT", "/lfs/") == 1


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (Rule("GET", "whoami", 401), "does not take this token"),
        (Rule("POST", "repos/create", 403, "you may not"), "needs the role `write` (403: you may not)"),
        (Rule("POST", "preupload", 404), "no such repository"),
        (Rule("POST", "/commit/", 409), "changed by somebody else"),
        (Rule("POST", "/commit/", 412), "changed by somebody else"),
        (Rule("POST", "objects/batch", 403, "quota exceeded"), "(403: quota exceeded)"),
        (Rule("PUT", "/lfs/", 507, "disk full"), "no room left"),
        (Rule("POST", "/commit/", 402, "storage limit"), "no room left for it on the Hub (402: storage limit)"),
        (Rule("POST", "/commit/", 413), "no file of this size"),
        (Rule("POST", "/commit/", 503), "not well just now"),
        (Rule("POST", "preupload", 429), "asks to wait"),
        (Rule("POST", "/commit/", 0), "the connection broke off"),
    ],
    ids=lambda value: f"{value.status} {value.path.strip('/')}" if isinstance(value, Rule) else "",
)
def test_the_hub_says_no_in_one_line_and_nothing_is_published(server, publish, folder, rule, said):
    server.rules.append(rule)
    line = publish()
    assert line.startswith("hub:") and "nothing was published: " in line and said in line
    assert all(not repo.files() for repo in server.repos.values())
    server.rules.clear()
    assert publish()[1]["changed"] and server.repos[f"{USER}/model"].files() == local(folder)


def test_no_token_a_wrong_one_and_anothers_name(server, publish):
    assert "no Hub token here; log in (`hf auth login`)" in publish(token=None)
    assert "does not take this token" in publish(token="hf_wrong")
    assert f"may write to {USER}, {ORGANISATION}, not to 'bob'" in publish("bob/model")
    assert not server.repos


def test_no_hub_at_all(publish, server):
    server.url = "http://127.0.0.1:9"
    assert "the connection broke off" in publish()


@pytest.mark.parametrize("there", [True, False], ids=["a repository", "none yet"])
def test_what_another_does_meanwhile_stands(server, folder, tmp_path, there):
    """Between the look, by which it was decided, and the commit; and where two runs publish to one new name."""
    if there:
        server.repos[f"{USER}/model"] = Repo(private=True)
    process = subprocess.Popen(
        [sys.executable, "-c", PUBLISH, str(folder), MODEL, "wait"], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_environment(server, tmp_path),
    )  # fmt: skip
    assert process.stdout.readline() == "looked\n"
    theirs = server.put(f"{USER}/model", {"theirs.txt": b"x"})
    _, said = process.communicate("\n", timeout=60)
    assert process.returncode and "nothing was published: the repository was changed by somebody else meanwhile" in said
    assert server.repos[f"{USER}/model"].branches["main"] == theirs


def test_a_file_that_the_repository_ignores_is_not_silently_missing(server, publish):
    theirs = server.put(f"{USER}/model", {".gitignore": b"config.json"})
    assert "nothing was published: the repository has a .gitignore" in publish()
    assert server.repos[f"{USER}/model"].branches["main"] == theirs


def test_what_goes_wrong_after_the_commit_does_not_say_that_nothing_was_published(server, publish, folder):
    server.rules.append(Rule("POST", "/tag/", 403, "no tags for you"))
    said = publish(tag="v1")
    assert "published as" in said and "nothing was published" not in said and "no tags for you" in said
    assert server.repos[f"{USER}/model"].files() == local(folder)
    server.rules.clear()
    assert publish(tag="v1")[1]["changed"] is False
    assert server.repos[f"{USER}/model"].tags == {"v1": server.repos[f"{USER}/model"].branches["main"]}


def test_ctrl_c_ends_it_at_once_and_nothing_is_published(server, folder, tmp_path):
    """While a thread of the client waits for a file to have arrived."""
    server.slow = threading.Event()
    process = subprocess.Popen(
        [sys.executable, "-c", PUBLISH, str(folder), MODEL], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_environment(server, tmp_path),
    )  # fmt: skip
    try:
        while not server.large:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    finally:
        server.slow.set()
    assert process.returncode == 130 and "stopped before it was published" in said and "Traceback" not in said
    assert server.repos[f"{USER}/model"].files() == {}
