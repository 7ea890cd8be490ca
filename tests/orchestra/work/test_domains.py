"""What part of the data is a domain's own, where sources have shares of it."""

from types import SimpleNamespace

import pytest
import solved

from orchestra.config.faults import UserError
from orchestra.work.domains import traces_in

FIRST, SECOND = (SimpleNamespace(problem_id=name) for name in "ab")
TRACES = {"one": [FIRST, SECOND], "two": [SECOND]}
DOMAIN_OF = {"a": "Sums", "b": "Words"}


def test_traces_of_some_domains():
    assert traces_in(TRACES, DOMAIN_OF, ["Sums"]) == {"one": [FIRST]}, "the other source has none"
    for shares in (False, True):
        assert traces_in(TRACES, DOMAIN_OF, ["Words"], shares=shares) == {"one": [SECOND], "two": [SECOND]}
        assert traces_in(TRACES, DOMAIN_OF, ["Dates"], shares=shares) == {}, "whoever asks for these says so"
    with pytest.raises(
        UserError, match=r"^data: two has a share, and no traces in 'Sums'; list the sources without sh"
    ):
        traces_in(TRACES, DOMAIN_OF, ["Sums"], shares=True)


@pytest.mark.parametrize("keys", [{"expert": "each"}, {"expert": "sums", "domains": ["Sums"]}])
def test_a_share_that_a_domain_has_nothing_of_is_told_before_anything_is_trained(tiny_path, tmp_path, engine, keys):
    """Words are in both files, sums in one. The expert of sums would come first, but so late is too late for others."""
    rows = [line | {"domain": domain} for line, domain in zip(solved.rows(3), ("Sums", "Words", "Words"), strict=True)]
    one, two = (solved.written(tmp_path / f"{name}.jsonl", of) for name, of in (("one", rows[:2]), ("two", rows[2:])))
    stage = {"name": "experts", "kind": "sft", "steps": 1, "batch_size": 2, "learning_rate": 1e-2, "preflight": False}
    recipe = solved.recipe(
        tiny_path, tmp_path, [stage | {"data": {one: 0.5, two: 0.5}} | keys], test=solved.held_out(None),
        evaluate={"perplexity": 0, "greedy": False},
    )  # fmt: skip
    context = solved.context(recipe, "experts", tmp_path / "run", engine)
    with pytest.raises(UserError, match=r"^data: \S*two\.jsonl has a share, and no traces in 'Sums'; list the sources"):
        context.stage.run(context)
    assert not list(context.folder.iterdir())
