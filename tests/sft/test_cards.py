"""Cards of trace sets and what differs between two, on numbers worked out by hand and on files that are none."""

import json
from dataclasses import asdict

import pytest
from typer.testing import CliRunner

from orchestra import cli
from rewards.verdict import Verdict
from sft.cards import Overlap, Spread, read_set
from sft.distill import DistillError, Trace, read_traces


def row(problem, tokens, *, rate=None, right=True, text=None, gold="4"):
    verdict = Verdict.CORRECT if right else Verdict.WRONG
    return asdict(Trace(problem, f"{problem}?", gold, text or f"{problem} in {tokens}", verdict, tokens, rate))


FIRST = [
    row("a", 10, rate=0.5), row("a", 20, rate=0.5), row("b", 30, rate=1.0), row("c", 40, rate=0.0, right=False)
]  # fmt: skip
SECOND = [row("b", 30, rate=1.0), row("b", 50, rate=1.0), row("c", 44, rate=0.25, gold="5"), row("d", 8, rate=0.25)]


def written(folder, rows, statistics=None):
    folder.mkdir()
    (folder / "traces.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    if statistics is not None:
        (folder / "statistics.json").write_text(statistics)
    return folder


def diff(*arguments):
    return CliRunner().invoke(cli.app, ["diff", *map(str, arguments)])


def test_a_card_by_hand(tmp_path):
    """Four traces of three of five problems; each problem's pass rate counts once, each trace's length."""
    card, traces = read_set(written(tmp_path / "first", FIRST, '{"problems": 5}'))
    assert (card.traces, card.problems, card.asked, card.covered, card.correct) == (4, 3, 5, 0.6, 0.75)
    assert card.tokens == Spread(25.0, 10.0, (pytest.approx(13.0), 25.0, pytest.approx(37.0)), 40.0)
    assert card.pass_rates == Spread(0.5, 0.0, (pytest.approx(0.1), 0.5, pytest.approx(0.9)), 1.0)
    assert [asdict(one) for one in traces] == FIRST


def test_a_file_alone_says_less(tmp_path):
    folder = written(tmp_path / "first", [{k: v for k, v in one.items() if k != "pass_rate"} for one in FIRST])
    card, _ = read_set(folder / "traces.jsonl")
    assert (card.traces, card.asked, card.covered, card.pass_rates) == (4, None, None, None)


def test_what_differs_by_hand(tmp_path):
    """b and c are in both, one trace word for word. b: 30 against 40 tokens, c: 40 against 44, so 7 more."""
    one, other = written(tmp_path / "a", FIRST, '{"problems": 5}'), written(tmp_path / "b", SECOND)
    told = json.loads(diff(one, other, "--json").stdout)
    assert told["overlap"] == asdict(Overlap(2, 1, 1, 1, 7.0, 1))
    assert told["first"]["tokens"]["mean"] == 25.0 and told["second"]["tokens"]["mean"] == 33.0
    back = json.loads(diff(other, one, "--json").stdout)
    assert back["overlap"] == asdict(Overlap(2, 1, 1, 1, -7.0, 1)) and back["first"] == told["second"]
    lines = diff(one, other / "traces.jsonl").stdout.splitlines()
    rows = {line[:20].strip(): line.split()[-3:] for line in lines if line}
    assert rows["tokens: mean"] == ["25", "33", "+8"]
    assert rows["problems asked"] == ["5", "–", "–"]
    assert "2 problems in both, 1 only in the first, 1 only in the second" in lines
    assert "on the problems of both, the second's traces have +7 tokens" in lines
    assert "1 of the problems in both have other gold answers" in lines


def test_a_set_is_like_itself(tmp_path):
    one = written(tmp_path / "a", FIRST)
    overlap = json.loads(diff(one, one, "--json").stdout)["overlap"]
    assert overlap == asdict(Overlap(3, 0, 0, 4, 0.0, 0))


GOOD = json.dumps(FIRST[0])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "there are no traces in it"),
        (b"\n \n", "there are no traces in it"),
        (f"{GOOD}\n{GOOD[:-9]}\n".encode(), "line 2: Invalid JSON"),
        (b"not json\n", "line 1: Invalid JSON"),
        (f"{GOOD}\n\n[1]\n".encode(), "line 3: "),
        (f"{GOOD}\n{GOOD.replace('question', 'query')}\n".encode(), "line 2: no 'question'"),
        (GOOD.replace('"correct"', '"fine"').encode(), "line 1: verdict: "),
        (GOOD.replace("10,", '"ten",').encode(), "line 1: tokens: "),
        (GOOD.replace("10,", "-1,").encode(), "line 1: tokens: "),
        (GOOD.replace("0.5}", "1.5}").encode(), "line 1: pass_rate: "),
        (GOOD.replace("0.5}", "NaN}").encode(), "line 1: "),
        (b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_a_file_that_is_none_is_one_line(tmp_path, text, said):
    path = tmp_path / "traces.jsonl"
    path.write_bytes(text)
    with pytest.raises(DistillError) as told:
        read_traces(path)
    assert said in str(told.value) and str(told.value).startswith(f"{path}: ") and "\n" not in str(told.value)


def test_what_is_not_there_is_one_line(tmp_path):
    with pytest.raises(DistillError, match=r"none: No such file or directory$"):
        read_set(tmp_path / "none")
    with pytest.raises(DistillError, match=r"there is no traces\.jsonl in this folder$"):
        read_set(tmp_path)
    for i, text in enumerate(("[]", "{", '{"kept": 1}', '{"problems": "all"}')):
        with pytest.raises(DistillError, match=r"statistics\.json: "):
            read_set(written(tmp_path / str(i), FIRST, text))
