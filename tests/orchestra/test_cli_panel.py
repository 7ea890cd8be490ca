"""`orchestra panel` as a user meets it: what it shows and does; where it cannot, one message and an untouched disk."""

import errno
import os
import sys
from dataclasses import replace

import panels
import pytest

from models.experts import Record, RemovalRecord, read_panel, router_files, router_folder, write_panel
from orchestra import cli
from orchestra.run.ledger import Fingerprint, Ledger, LedgerEntry, StageResult


@pytest.fixture
def orchestra(tmp_path, monkeypatch, capfd):
    """orchestra("panel", ...) -> (exit code, standard output, standard error), in a directory with a panel of two
    experts, `mine`, and a run that left two panels."""
    monkeypatch.chdir(tmp_path)
    panels.write(tmp_path / "mine", tmp_path / "made")
    run = tmp_path / "runs" / "songs-embedded"
    for number, (name, experts) in enumerate({"train": ["algebra"], "plain": [], "again": ["algebra", "mlp"]}.items()):
        stage = run / f"{number:02}-{name}"
        stage.mkdir(parents=True)
        if experts:
            panels.write(stage / "panel", tmp_path / "made" / name, experts)
        entry = LedgerEntry(stage.name, Fingerprint({}, {}, {}), {}, StageResult(name, "sft"))
        Ledger(run).record(entry)
    (run / "run.json").write_text("{}")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["orchestra", "panel", *map(str, arguments)])
        code = cli.main()
        out, err = capfd.readouterr()
        return code, out, err

    return call


def test_a_panel_by_hand(orchestra, tmp_path):
    """From a run's panel to one with an expert more, one less, another name, and back again."""
    code, out, err = orchestra("copy", "songs-embedded", "own")
    assert (code, out, err) == (0, "own: algebra, mlp\n", "")
    first = panels.tree(tmp_path / "own")
    panels.adapter(tmp_path / "new", 5, rank=7)
    calls = {
        ("add", "own", "geometry", "--from", "new", "--domain", "shapes"): "added 'geometry'",
        ("clone", "own", "algebra", "twin"): "cloned 'algebra' as 'twin'",
        ("remove", "own", "mlp"): "removed 'mlp'",
        ("rename", "own", "algebra", "sums"): "renamed 'algebra' to 'sums'",
    }
    for call, said in calls.items():
        assert orchestra(*call) == (0, f"own: {said}; `orchestra panel undo own` takes it back\n", "")
    assert [(one.name, *one.domains, one.rank) for one in read_panel(tmp_path / "own").experts] == [
        ("sums", "algebra", 2), ("geometry", "shapes", 7), ("twin", "algebra", 2)
    ]  # fmt: skip
    for said in reversed(calls.values()):
        assert orchestra("undo", "own") == (0, f"own: undone: {said}\n", "")
    assert panels.tree(tmp_path / "own") == first == panels.tree(tmp_path / "runs/songs-embedded/02-again/panel")


def test_copy_of_a_stage(orchestra, tmp_path):
    code, out, _ = orchestra("copy", "songs-embedded", "deeper/own", "--stage", "train")
    assert code == 0 and out == "deeper/own: algebra\n"
    assert read_panel(tmp_path / "deeper" / "own").names == ("algebra",)


def test_what_is_shown(orchestra, tmp_path):
    """An adapter's size is that of its two files; the record has its interval in percent."""
    folder = tmp_path / "mine"
    before = read_panel(folder)
    orchestra("add", "mine", "geometry", "--from", panels.adapter(tmp_path / "new", 5))
    assert before.expert("mlp").record == Record(0.5, 0.45, 0.55, 200, "generator")
    code, out, err = orchestra("show", "mine")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    size = sum(path.stat().st_size for path in (folder / "experts" / "mlp").iterdir())
    assert code == 0 and not err and lines[0] == "base: embedded/student"
    assert lines[1] == "expert domain rank parent trained in accuracy without it size"
    assert lines[3] == f"mlp mlp 3 base train 50.0 % [45.0, 55.0] – {size / 1024:.1f} KiB"
    assert lines[4].startswith("geometry all 2 base – – – ")
    assert lines[5:] == ["router: none", "`orchestra panel undo mine` takes back: added 'geometry'"]
    assert orchestra("show", "runs/songs-embedded/02-again/panel")[1].splitlines()[-1] == "nothing to undo"
    router = panels.router(tmp_path / "router", ["base", "algebra", "mlp"])
    routed = replace(before, router=router_files(router))
    place = router_folder(write_to := tmp_path / "routed", routed)
    write_panel(write_to, routed, {name: folder / "experts" / name for name in routed.names}, router)
    assert f"router: routers/{place.name}, 36 B\n" in orchestra("show", "routed")[1]


def test_what_a_removal_is_predicted_to_cost_is_said_before_it_is_done(orchestra, tmp_path, monkeypatch):
    """In `show` beside each expert; by `remove` in front of what it did, and of any fault in doing it. Nothing is said
    where nobody knows: of the other one, once the first is gone."""
    folder = tmp_path / "mine"
    panel = read_panel(folder)
    known = tuple(replace(one, cost=RemovalRecord(0.3, -0.041, -0.0649, -0.018)) for one in panel.experts)
    write_panel(folder, replace(panel, experts=known))
    rows = [" ".join(line.split()) for line in orchestra("show", "mine")[1].splitlines()[2:4]]
    assert all("[45.0, 55.0] −4.1 [−6.5, −1.8] " in row for row in rows)
    said = "without algebra (load 30%): −4.1 points [−6.5, −1.8] predicted\n"
    before = panels.tree(folder)
    with monkeypatch.context() as full:
        full.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
        code, out, err = orchestra("remove", "mine", "algebra")
    assert code == 1 and out == said and "is full; make room" in err and panels.tree(folder) == before
    done = "mine: removed 'algebra'; `orchestra panel undo mine` takes it back\n"
    assert orchestra("remove", "mine", "algebra") == (0, said + done, "")
    code, _, err = orchestra("remove", "mine", "mlp")
    assert code == 1 and "'mlp' is the last expert of the panel, which without it is none; take the folder away" in err
    assert orchestra("clone", "mine", "mlp", "twin")[0] == 0
    code, out, err = orchestra("remove", "mine", "mlp")
    assert (code, err) == (0, "") and "predicted" not in out
    assert [orchestra("undo", "mine")[0] for _ in range(3)] == [0, 0, 0] and panels.tree(folder) == before


def test_a_router_loses_and_renames_what_it_knows(orchestra, tmp_path):
    """What it does not know yet comes and goes without it; the rows that stay are the same bytes."""
    from models import router as routers

    folder, known = tmp_path / "mine", panels.known_router(tmp_path / "router", ["algebra", "mlp"])
    made = routers.Router.read(known)
    routed = replace(read_panel(folder), router=router_files(known))
    write_panel(folder, routed, router=known, copy=True)
    first = panels.tree(folder)

    def router():
        return routers.Router.read(router_folder(folder, read_panel(folder)))

    code, out, _ = orchestra("clone", "mine", "mlp", "twin")
    assert code == 0 and "the router does not know 'twin', which answers nothing until a `route` stage decides" in out
    assert router().names == made.names
    assert orchestra("rename", "mine", "twin", "other")[0] == 0 and router().names == made.names
    assert orchestra("rename", "mine", "mlp", "sums")[0] == 0 and router().names == ("base", "algebra", "sums")
    assert orchestra("remove", "mine", "algebra")[0] == 0 and router().names == ("base", "sums")
    assert router().row_bytes("sums") == made.row_bytes("mlp")
    for _ in range(4):
        assert orchestra("undo", "mine")[0] == 0
    assert panels.tree(folder) == first


def cut(place):
    place.write_bytes(place.read_bytes()[:-1])


def by_hand(folder, old, new):
    path = folder / "panel.json"
    path.write_text(path.read_text().replace(old, new))


IN_A_RUN = "would refuse to go on if it were changed; `orchestra panel copy "


@pytest.mark.parametrize(
    ("spoil", "call", "said"),
    [
        (None, "add mine new --from other", "other/adapter_config.json: base_model_name_or_path is 'Qwen/Qwen2.5-3B'"),
        (None, "add mine new --from wide", "wide/adapter_model.safetensors: 'base_model.model.model.layers.0.q_proj"),
        (None, "add mine new --from nowhere", "nowhere holds no adapter (adapter_config.json is missing)"),
        (lambda at: cut(at / "fits/adapter_model.safetensors"), "add mine new --from fits", "is cut off or no safeten"),
        (lambda at: (at / "fits/adapter_model.safetensors").unlink(), "add mine new --from fits", "holds no adapter"),
        (lambda at: cut(at / "fits/adapter_config.json"), "add mine new --from fits", "is no JSON"),
        (None, "add mine mlp --from fits", "there is an expert 'mlp' already (experts: algebra, mlp); choose another"),
        (None, "add mine each --from fits", "'each' has a meaning of its own; choose another name for the expert"),
        (None, "add mine ../../out --from fits", "'../../out' is no name for an expert"),
        (None, "clone mine algebra mlp", "there is an expert 'mlp' already"),
        (None, "rename mine mlp algebra", "there is an expert 'algebra' already"),
        (None, "remove mine algebro", "there is no expert 'algebro' in the panel (experts: algebra, mlp); did you"),
        (None, "undo mine", "there is nothing to undo"),
        (None, "undo nowhere", "nowhere holds no panel (panel.json is missing)"),
        (None, "show fits", "fits holds no panel (panel.json is missing)"),
        (None, "remove mine/panel.json mlp", "mine/panel.json holds no panel"),
        (lambda at: by_hand(at / "mine", '"rank": 3', '"rank": 4'), "remove mine mlp", "said to have rank 4, and has"),
        (lambda at: by_hand(at / "mine", '"rank"', '"rnak"'), "show mine", "mine/panel.json: experts.0.rank"),
        (lambda at: by_hand(at / "mine", '"version": 1', '"version": 9'), "undo mine", "is of version 9, and this"),
        (lambda at: cut(at / "mine/experts/mlp/adapter_model.safetensors"), "remove mine mlp", "edited, or cut off"),
        (lambda at: (at / "mine/experts/mlp/adapter_config.json").unlink(), "clone mine algebra new", "put it back"),
        (None, "remove runs/songs-embedded/02-again/panel mlp", IN_A_RUN),
        (None, "undo runs/songs-embedded/02-again/panel", IN_A_RUN),
        (None, "copy songs-embedded runs/songs-embedded/own", IN_A_RUN),
        (None, "copy songs-embedded mine", "mine is there already; choose a folder that is not there yet"),
        (None, "copy songs-embedded own --stage agian", "(these have: train, again); did you mean 'again'?"),
        (None, "copy songs-embedded own --stage plain", "--stage plain: has no panel"),
        (None, "copy sings-embedded own", "there is no run 'sings-embedded' (runs: songs-embedded); did you mean"),
        (lambda at: cut(at / "runs/songs-embedded/02-again/panel/experts/mlp/adapter_model.safetensors"),
         "copy songs-embedded own", "edited, or cut off); put it back"),
        (lambda at: (at / "runs/songs-embedded/ledger.json").unlink(), "copy songs-embedded own", "no finished stage"),
    ],
)  # fmt: skip
def test_bad_input(orchestra, tmp_path, spoil, call, said):
    """One message, no traceback, nothing changed on the disk."""
    panels.adapter(tmp_path / "fits", 5)
    panels.adapter(tmp_path / "wide", 5, widths={"q_proj": (6, 9)})
    panels.adapter(tmp_path / "other", 5, base_model_name_or_path="Qwen/Qwen2.5-3B")
    if spoil is not None:
        spoil(tmp_path)
    before = panels.tree(tmp_path)
    code, out, err = orchestra(*call.split())
    assert code == 1 and not out and said in err, err
    assert err.startswith("orchestra: ") and err.count("\n") == 1 and "Traceback" not in err
    assert panels.tree(tmp_path) == before


def in_a_fork(call, number, after, capfd):
    """(code of the command, what it said) where the disk fails with this errno from some operation on."""

    def work():
        sys.argv = ["orchestra", "panel", *call.split()]
        code = cli.main()
        sys.stderr.flush()
        os._exit(40 + code)

    code, any_more = panels.in_a_fork(work, panels.failing(number), events=panels.CREATING, after=after)
    return code - 40, any_more, capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.ENOSPC, "is full; make room"), (errno.EROFS, "Read-only file system"), (errno.EACCES, "Permission denied")],
    ids=["full", "read-only", "forbidden"],
)
def test_a_disk_that_does_not_take_it(orchestra, tmp_path, capfd, number, said):
    """Wherever it begins to fail: one message, and nothing is changed, or all of it."""
    panels.adapter(tmp_path / "fits", 5)
    orchestra("show", "mine")
    before, at = panels.tree(tmp_path), 0
    for call in ("add mine new --from fits", "remove mine mlp", "copy songs-embedded own"):
        for at in range(0, 100, 1 if number == errno.ENOSPC else 5):
            code, any_more, err = in_a_fork(call, number, at, capfd)
            if not any_more:
                break
            assert code == 1 and said in err and err.startswith("orchestra: ") and err.count("\n") == 1, (at, err)
            assert panels.tree(tmp_path) == before, at
        assert code == 0 and at >= 5
        before = panels.tree(tmp_path)


def test_where_it_may_stand(orchestra, tmp_path):
    """A link into a run leads into the run; a folder beside runs does not."""
    (tmp_path / "link").symlink_to(tmp_path / "runs/songs-embedded/02-again/panel")
    code, _, err = orchestra("remove", "link", "mlp")
    assert code == 1 and IN_A_RUN in err and str(tmp_path / "runs" / "songs-embedded") in err
    assert orchestra("copy", "songs-embedded", "runs/own")[0] == 0
    assert orchestra("remove", "runs/own", "mlp")[0] == 0


def test_help(orchestra):
    code, out, _ = orchestra("--help")
    assert code == 0
    for word in ("show", "copy", "add", "clone", "remove", "rename", "undo"):
        assert f"  {word} " in out
