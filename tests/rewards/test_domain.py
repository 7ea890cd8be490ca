"""A domain is one object and one folder: listed without being imported, inherited where it is silent."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from toy_domain import TOY, add_toy_domain

from rewards.domain import Domain, DomainError, domain_names, get_domain
from rewards.problems import ProblemError
from rewards.settings import Reward
from rewards.verdict import Judgement, Verdict

ROOT = Path(__file__).resolve().parents[2]
CORRECT, WRONG, UNGRADABLE = Verdict.CORRECT, Verdict.WRONG, Verdict.UNGRADABLE


@pytest.fixture
def reverse(tmp_path, monkeypatch):
    add_toy_domain(tmp_path / "domains", monkeypatch)
    return get_domain("reverse")


def test_a_folder_is_a_domain(reverse):
    assert domain_names() == ["math", "reverse"]
    assert reverse.name == "reverse" and isinstance(reverse, Domain)
    assert get_domain("reverse") is reverse


def test_the_toy_does_not_stay():
    assert domain_names() == ["math"] and "rewards.reverse" not in sys.modules


def test_names_are_listed_without_importing(tmp_path, monkeypatch):
    add_toy_domain(tmp_path, monkeypatch, "raise RuntimeError('imported')")
    assert domain_names() == ["math", "reverse"]
    with pytest.raises(RuntimeError, match="imported"):
        get_domain("reverse")


@pytest.mark.parametrize(("name", "hint"), [("maths", "; did you mean 'math'?"), ("generator", ""), ("../math", "")])
def test_an_unknown_domain_names_the_near_miss_and_the_known_ones(name, hint):
    with pytest.raises(DomainError) as caught:
        get_domain(name)
    message = str(caught.value)
    assert f"{name!r} is not a domain (known: math)" in message and hint in message
    assert caught.value.user_message and isinstance(caught.value, ValueError)


def test_an_unknown_format_names_the_near_miss_and_the_known_ones():
    math = get_domain("math")
    assert math.format("boxed").name == "boxed"
    with pytest.raises(DomainError, match=r"known: think-boxed, boxed\); did you mean 'think-boxed'"):
        math.format("think_boxed")


def test_importing_domains_is_light():
    """`orchestra check` does it."""
    code = (
        "import sys; from rewards.domain import domain_names, get_domain; get_domain(domain_names()[0]);"
        "import rewards.settings, rewards.formats, rewards.problems;"
        "heavy = {m.split('.')[0] for m in sys.modules} & {'torch', 'transformers', 'vllm', 'sympy', 'mpmath', 'scipy',"
        "'numpy', 'matplotlib', 'datasets', 'math_verify', 'subprocess'};"
        "sys.exit(f'heavy imports: {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=ROOT)


# --- what a domain inherits


def test_its_own_problems_and_those_of_a_file(reverse, tmp_path):
    words, others = (reverse.problems("words", split, limit=5, seed=1) for split in ("train", "test"))
    assert len(words) == 5 and all(problem.gold == problem.id[::-1] for problem in words)
    assert words == reverse.problems("words", "train", limit=5, seed=1) != others
    file = tmp_path / "mine.jsonl"
    rows = [{"question": "1,024 backwards?", "answer": "#### 1,024"}, {"question": "b?", "answer": "b", "subject": "x"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = reverse.problems(str(file), "test", limit=None, seed=0)
    # what is a number to mathematics is a text here
    assert (first.gold, first.domain, second.domain) == ("1,024", "reverse", "x")
    assert get_domain("math").problems(str(file), "test", limit=1, seed=3)[0].domain in ("math", "x")
    assert get_domain("math").problems(str(file), "test", limit=None, seed=0)[0].gold == "1024"


def test_sources_are_the_domains_own(reverse):
    with pytest.raises(ProblemError, match=r"neither 'words', a \.jsonl .*did you mean 'words'"):
        reverse.problems("word", "train", limit=None, seed=0)
    with pytest.raises(ProblemError, match="'embedded' is neither 'words'"):
        reverse.problems("embedded", "train", limit=None, seed=0)
    with pytest.raises(ProblemError, match="'dev'"):
        reverse.problems("words", "dev", limit=None, seed=0)


def test_it_asks_in_its_own_words(reverse):
    assert reverse.format("think-boxed").messages("Spell abc.")[0]["content"].startswith("Spell the word backwards")
    with pytest.raises(DomainError, match="known: think-boxed"):
        reverse.format("boxed")


def test_the_answer_is_the_last_box_behind_the_think_block(reverse):
    assert reverse.answer("<think>\\boxed{cab}</think> \\boxed{abc} no, \\boxed{cba}") == "cba"
    for text in ("", "<think>\\boxed{cba}", "<think>\\boxed{cba}</think>", "cba", "\\boxed{cba"):
        assert reverse.answer(text) == "", text


def test_the_answer_must_be_the_gold_letter_by_letter(reverse):
    completions = ["\\boxed{cba}", "\\boxed{abc}", "cba", "\\boxed{cba}"]
    judgements = reverse.judge(completions, ["cba", "cba", "cba", " "])
    assert [judgement.verdict for judgement in judgements] == [CORRECT, WRONG, WRONG, UNGRADABLE]
    assert all(judgement.grounds and not judgement.timed_out for judgement in judgements)
    # what is the same number to mathematics is another text here
    assert reverse.judge(["\\boxed{1/2}"], ["0.5"])[0].verdict is WRONG
    assert get_domain("math").judge(["\\boxed{1/2}"], ["0.5"])[0].verdict is CORRECT
    with pytest.raises(ValueError):
        reverse.judge(completions, ["cba"])


def test_rewards_ask_its_judge(tmp_path, monkeypatch):
    judge = """
    def judge(self, completions, golds):
        from rewards.verdict import Judgement, Verdict
        assert len(completions) == len(golds)
        return [Judgement(Verdict.CORRECT, timed_out=True) for _ in completions]
"""
    add_toy_domain(tmp_path / "domains", monkeypatch, TOY.replace("\nDOMAIN", judge + "\nDOMAIN"))
    lenient = get_domain("reverse")
    rewards = lenient.rewards(Reward(correct=2.0, cosine=0.5), lenient.format("think-boxed"), 100)
    logged = {}
    values = [
        function(
            prompts=["p"], completions=["nonsense"], completion_ids=[[1]], gold=["cba"],
            log_metric=lambda name, value: logged.update({name: value}),
        )
        for function in rewards.functions
    ]  # fmt: skip
    assert rewards.names == ["correct", "format", "cosine"]
    assert values == [[1.0], [0.0], [pytest.approx(1.0, abs=1e-3)]]
    assert logged == {"verifier/ungradable": 0.0, "verifier/timeouts": 1.0}


def test_a_judgement_is_a_verdict_with_its_grounds():
    assert Judgement(CORRECT) == Judgement(CORRECT, False, "")
    assert get_domain("math").judge(["\\boxed{1}"], ["1"]) == [Judgement(CORRECT, False, "same text")]
