"""Problem sources: the generator's promises, files with every kind of fault, GSM8K's notation, overlap."""

import json

import pytest

from rewards.math.domain import DOMAIN as MATH
from rewards.problems import Problem, ProblemError, overlapping

GSM8K_ANSWER = (
    "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n"
    "Natalia sold 48+24 = <<48+24=72>>72 clips altogether in April and May.\n#### 72"
)


def load(source, split, *, limit=None, seed=0):
    return MATH.problems(source, split, limit=limit, seed=seed)


def write_lines(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return str(path)


# --- files


def test_rows_of_a_file(tmp_path):
    path = write_lines(
        tmp_path / "mine.jsonl",
        {"question": "1 + 1?", "answer": 2, "domain": "sums", "difficulty": 3.0},
        "",
        {"id": "x", "question": "2 + 2?", "answer": "#### 4", "solution": "2 + 2 = <<2+2=4>>4"},
        {"question": "Natalia ...", "answer": GSM8K_ANSWER},
        {"question": "a line separator\u2028inside", "answer": "1,072"},
    )
    first, second, third, fourth = load(path, "train")
    assert first == Problem("mine-1", "1 + 1?", "2", None, "sums", 3)
    assert second == Problem("x", "2 + 2?", "4", "2 + 2 = 4", domain="math")
    assert third.gold == "72" and "<<" not in third.solution and "####" not in third.solution
    assert third.solution.startswith("Natalia sold 48/2 = 24 clips")
    assert (fourth.id, fourth.gold) == ("mine-5", "1072")


def test_json_list_and_limit(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([{"question": f"{n}?", "answer": n} for n in range(50)]))
    some = load(str(path), "test", limit=10, seed=1)
    assert [p.gold for p in some] == sorted((p.gold for p in some), key=int)
    assert some == load(str(path), "test", limit=10, seed=1) != load(str(path), "test", limit=10)
    assert some != load(str(path), "train", limit=10, seed=1), "of one file each split draws its own"
    assert len(load(str(path), "test", limit=50)) == len(load(str(path), "test", limit=51)) == 50


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"question": "1?", "answer": "1"', ["mine.jsonl:2", "not JSON"]),
        ("[1, 2]", ["mine.jsonl:2", "expected an object", "list"]),
        ('{"questoin": "1?", "answer": "1"}', ["mine.jsonl:2", "'question' is missing", "rename 'questoin'"]),
        ('{"question": "1?"}', ["mine.jsonl:2", "'answer' is missing"]),
        ('{"question": "1?", "answer": ""}', ["mine.jsonl:2", "'answer' is empty", "drop the row"]),
        ('{"question": "1?", "answer": null}', ["mine.jsonl:2", "'answer' is empty"]),
        ('{"question": "1?", "answer": "thought ####"}', ["mine.jsonl:2", "no gold"]),
        ('{"question": "1?", "answer": [1]}', ["mine.jsonl:2", "'answer'", "expected text or a number", "[1]"]),
        ('{"question": "1?", "answer": 1, "difficulty": "hard"}', ["mine.jsonl:2", "'difficulty'", "'hard'"]),
        ('{"question": "1?", "answer": 1, "id": "first"}', ["mine.jsonl:2", "'first'", "mine.jsonl:1", "unique"]),
    ],
)
def test_a_bad_line_is_named_with_its_number_and_a_remedy(tmp_path, line, words):
    path = write_lines(tmp_path / "mine.jsonl", {"id": "first", "question": "0?", "answer": 0}, line)
    with pytest.raises(ProblemError) as error:
        load(path, "train")
    for word in words:
        assert word in str(error.value)


def test_all_bad_lines_are_told_at_once(tmp_path):
    path = write_lines(tmp_path / "mine.jsonl", *['{"question": "1?"}'] * 8)
    with pytest.raises(ProblemError) as error:
        load(path, "train")
    assert "mine.jsonl:1:" in str(error.value) and "mine.jsonl:5:" in str(error.value)
    assert "3 more" in str(error.value)
    with pytest.raises(ProblemError) as error:
        load(write_lines(tmp_path / "mine.jsonl", *['{"question": "1?"}'] * 5), "train")
    assert "mine.jsonl:5:" in str(error.value) and "more" not in str(error.value)


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "mine.jsonl").write_bytes(b"\xef\xbb\xbf" + b'{"question": "1?", "answer": 1}\n')
    assert load(str(tmp_path / "mine.jsonl"), "train")[0].question == "1?"


def test_empty_missing_and_unknown_sources(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    write_lines(tmp_path / "gsm8k_train.jsonl", {"question": "1?", "answer": 1})
    (tmp_path / "latin.jsonl").write_bytes('{"question": "é", "answer": "1"}'.encode("latin-1"))
    for source, words in [
        (str(tmp_path / "empty.jsonl"), ["empty.jsonl", "no problems"]),
        (str(tmp_path / "gsm8k_tran.jsonl"), ["does not exist", "gsm8k_train.jsonl"]),
        (str(tmp_path / "latin.jsonl"), ["latin.jsonl", "UTF-8"]),
        ("embeded", ["'embeded'", "did you mean 'embedded'"]),
    ]:
        with pytest.raises(ProblemError) as error:
            load(source, "train")
        for word in words:
            assert word in str(error.value)
    with pytest.raises(ProblemError, match="dev"):
        load("embedded", "dev")
    with pytest.raises(ProblemError, match="limit"):
        load("embedded", "train", limit=0)


# --- the Hub


def test_hub_rows_go_through_the_same_reader(monkeypatch):
    import datasets

    asked = []

    def from_hub(name, config, split, revision):
        asked.append((name, config, split, revision))
        return [{"question": "Natalia ...", "answer": GSM8K_ANSWER}]

    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name, revision: ["main", "socratic"])
    monkeypatch.setattr(datasets, "load_dataset", from_hub)
    (problem,) = load("openai/gsm8k", "test")
    assert (problem.id, problem.gold) == ("gsm8k-test-0", "72")
    load("openai/gsm8k:socratic@v2", "train")
    assert asked == [("openai/gsm8k", "main", "test", None), ("openai/gsm8k", "socratic", "train", "v2")]


def test_rows_of_another_commit_are_refused(monkeypatch):
    """Without a network the library takes what it has, whatever the revision."""
    import datasets

    class Rows(list):
        cache_files = ({"filename": f"/cache/openai___gsm8k/main/0.0.0/{'a' * 40}/gsm8k-test.arrow"},)

    rows = Rows([{"question": "1 + 1?", "answer": "2"}])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    assert len(load(f"openai/gsm8k:main@{'a' * 40}", "test")) == 1
    with pytest.raises(ProblemError, match="the cache of this machine has another commit"):
        load(f"openai/gsm8k:main@{'b' * 40}", "test")


@pytest.mark.parametrize(
    ("configs", "chosen"),
    [(["algebra"], "algebra"), (["a", "main", "z"], "main"), (["main", "default"], "default"), (["a", "b"], None)],
)
def test_which_configuration_of_a_data_set(monkeypatch, configs, chosen):
    """`default`, then `main`, then the only one; of several others none is guessed."""
    import datasets

    asked = []
    row = {"question": "1?", "answer": "1"}
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name, **more: configs)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, **more: asked.append(config) or [row])
    if chosen is None:
        with pytest.raises(ProblemError, match=r"several .*; name one, such as 'some/set:a' \(known: a, b\)"):
            load("some/set", "train")
    else:
        load("some/set", "train")
    assert asked == ([chosen] if chosen else [])


def test_a_hub_that_cannot_be_reached_is_one_clear_message(monkeypatch):
    import datasets

    def fail(*_args, **_kwargs):
        raise ConnectionError("Couldn't reach 'openai/gsm8k' on the Hub\nlong trace")

    monkeypatch.setattr(datasets, "get_dataset_config_names", fail)
    with pytest.raises(ProblemError) as error:
        load("openai/gsm8k", "train")
    message = str(error.value)
    assert "openai/gsm8k" in message and "reach" in message and ".jsonl" in message and "\n" not in message


# --- golds, solutions, overlap


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (GSM8K_ANSWER, "72"),
        ("#### 1,234,567", "1234567"),
        ("#### -3", "-3"),
        ("$1,050.50", "1050.50"),
        ("-$5", "-5"),
        ("5.", "5"),
        ("50\\%", "50\\%"),
        ("(1,000)", "(1,000)"),
        ("1, 2", "1, 2"),
        ("\\frac{1}{2}", "\\frac{1}{2}"),
    ],
)
def test_a_gold_is_cleaned(answer, gold):
    assert MATH.gold(answer) == gold == MATH.gold(gold)


def test_a_clean_solution_keeps_the_words():
    assert MATH.solution(GSM8K_ANSWER) == (
        "Natalia sold 48/2 = 24 clips in May.\nNatalia sold 48+24 = 72 clips altogether in April and May."
    )


def test_overlap_by_ngram_and_of_short_questions():
    def problem(id, question):
        return Problem(id, question, "1")

    words = [f"w{n}" for n in range(20)]
    against = [problem("t", " ".join(words)), problem("u", "What is 2/3 of 9?")]
    train = [
        problem("copy", " ".join(words).upper()),
        problem("part", "before " + ", ".join(words[3:16]) + " after"),
        problem("less", "before " + " ".join(words[3:15]) + " after"),
        problem("short", "what is 2 / 3 of 9"),
        problem("other", "What is 2/3 of 12?"),
    ]
    assert overlapping(train, against, n=13) == {"copy", "part", "short"}
    assert overlapping([], against) == overlapping(train, []) == set()
