"""Domains of training data, and the experts that are made for them."""

import pytest

from models.experts import Expert, Lineage, Panel
from orchestra.config.faults import UserError
from orchestra.work.domains import asked_in, domain_table, expert_name, wanted
from rewards.problems import Asked, Problem


@pytest.mark.parametrize(
    ("domain", "name"),
    [("Counting & Probability", "counting-probability"), ("algebra", "algebra"), ("  A__b ", "a-b"), ("数学", "domain"),
     ("x" * 60, "x" * 40)],
)  # fmt: skip
def test_names_of_experts(domain, name):
    assert expert_name(domain) == name


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (["A b", "a-B"], "'A b' and another one would both have the expert 'a-b'; rename one"),
        (["数学", "代数"], "both have the expert 'domain'"),
        (
            ["Base"],
            "the expert of 'Base' would be called 'base': 'base' has a meaning of its own; .*; rename the domain",
        ),
        (["Each"], "would be called 'each'"),
    ],
)
def test_domains_whose_experts_have_no_name_of_their_own(there, said):
    with pytest.raises(UserError, match=said):
        wanted(there, None, "a")


def test_wanted_domains_are_in_order_whatever_the_data_says_first():
    assert wanted(["b", "a", "b", "c"], None, "s") == ("a", "b", "c")
    assert wanted(["b", "a", "b", "c"], ("c", "a"), "s") == ("a", "c")


def test_problems_of_domains_keep_their_prompts():
    some = tuple(Problem(str(at), "q", "1", None, domain="ab"[at % 2]) for at in range(4))
    found = asked_in(Asked(some, ("p0", "p1", "p2", "p3"), ((0,), (1,), (2,), (3,)), 5), ["b"])
    assert [one.id for one in found.problems] == ["1", "3"] and found.prompts == ("p1", "p3")
    assert found.tokens == ((1,), (3,)) and found.left_out == 5


def test_who_is_declared_for_a_domain():
    """An expert of several domains for each of them, a comma in whose name is none of ours; the later one counts."""

    def declared(**domains):
        experts = (Expert(name.replace("_", "-"), of, Lineage(""), 2, {}) for name, of in domains.items())
        return domain_table(Panel("base", "", tuple(experts)), ["Sums", "Word & co", "Sums, Word & co", "new"])

    assert declared(sums=("Sums", "Word & co"), word_co=("Sums, Word & co",)) == {
        "Sums": "sums", "Word & co": "sums", "Sums, Word & co": "word-co", "new": "base",
    }  # fmt: skip
    assert declared(sums=("Sums",), word_co=("Sums",))["Sums"] == "word-co"
    assert declared(sums=(), word_co=()) is None
