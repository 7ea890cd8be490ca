"""A panel on the real stack, killed in `expert: each`, in an expert's grpo and in `route`: the outcome is that of a
whole run, byte for byte."""

import pytest
from drill import finished, killed_when, steps

RECIPE = """
name: mini
seed: 3
model: {base: embedded/student, lora: {rank: 4, alpha: 8}}
problems: {train: "embedded:formal", test: "embedded:formal", train_limit: 60, test_limit: 12}
rollouts: {group_size: 4, prompts_per_step: 4, max_completion_tokens: 64, max_prompt_tokens: 96}
evaluate: {samples: 1, greedy: false, perplexity: 0}
stages:
  - {name: traces, kind: distill, teacher: embedded/teacher, problems: 40, samples: 1, max_tokens: 80}
  - {name: experts, kind: sft, data: traces, steps: 4, batch_size: 4, learning_rate: 1e-3, save_steps: 1, expert: each,
     preflight: false}
  - {name: rein, kind: grpo, steps: 4, learning_rate: 3e-4, beta: 0.01, save_steps: 1, reference: experts,
     expert: EXPERT}
  - {name: choose, kind: route, problems: 24, samples: 1, oracle_samples: 2}
"""


def recipe():
    from orchestra.work.domains import expert_name
    from rewards.generator.draw import DOMAINS
    from rewards.math.domain import STORIES

    return RECIPE.replace("EXPERT", min(expert_name(one) for one in DOMAINS if one not in STORIES))


@pytest.mark.slow
def test_a_panel_killed_in_each_of_its_stages_ends_the_same(tmp_path):
    whole, often = tmp_path / "whole", tmp_path / "often"
    for folder in (whole, often):
        folder.mkdir()
        (folder / "mini.yaml").write_text(recipe())
    expected = finished(whole)
    experts = {name.rsplit("/", 2)[1] for name in expected if "-experts/panel/experts/" in name}
    assert len(experts) >= 2
    moments = {
        "the second expert": lambda run: (
            len(list(run.glob("*-experts/each/*"))) == 2 and steps(run, "*-experts/each/*/metrics.jsonl", 2)
        ),
        "behind the experts": lambda run: [*run.glob("*-experts/panel/panel.json")],
        "its grpo": lambda run: steps(run, "*-rein/metrics.jsonl", 2),
        "asking the arms": lambda run: len(list(run.glob("*-choose/answers/*.json"))) == 2,
        "asking once more": lambda run: len(list(run.glob("*-choose/answers/*.json"))) == 2 * len(experts) + 1,
    }
    for name, moment in moments.items():
        assert killed_when(often, moment), (name, (often / "out.txt").read_text())
    assert not [*(often / "mini-none").glob("*-choose/result.json")]
    found = finished(often)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
