"""A panel that grows on the real stack, killed inside a window, inside the training of a new expert and before its
panel is written: the outcome is that of a whole run, byte for byte."""

import json

import pytest
from drill import finished, killed_when, steps

RECIPE = """
name: mini
seed: 3
model: {base: embedded/student, lora: {rank: 4, alpha: 8}}
problems: {train: "embedded:formal", test: "embedded:formal", train_limit: 120, test_limit: 12}
rollouts: {group_size: 4, prompts_per_step: 4, max_completion_tokens: 64, max_prompt_tokens: 96}
evaluate: {samples: 1, greedy: false, perplexity: 0}
stages:
  - {name: traces, kind: distill, teacher: embedded/teacher, problems: 60, samples: 1, max_tokens: 80}
  - {name: first, kind: sft, data: traces, steps: 2, batch_size: 4, learning_rate: 1e-3, expert: first,
     preflight: false}
  - {name: grow, kind: grow, data: traces, steps: 4, batch_size: 4, learning_rate: 1e-3, save_steps: 1,
     preflight: false, rounds: 3, window: 8, learn: 24, gain: 12, samples: 1, oracle_samples: 2,
     growth: {windows: 1, cooldown: 0, at_most: 3, at_least: 1, unsolved_above: 0, load_below: 0}}
"""


@pytest.mark.slow
def test_a_panel_killed_while_it_grows_ends_the_same(tmp_path):
    whole, often = tmp_path / "whole", tmp_path / "often"
    for folder in (whole, often):
        folder.mkdir()
        (folder / "mini.yaml").write_text(RECIPE)
    expected = finished(whole)
    (told,) = (whole / "mini-none").glob("*-grow/growth.json")
    tried = [one["expert"] for one in json.loads(told.read_text())["changes"] if one["action"] == "grow"]
    assert tried
    moments = {
        "inside a window": lambda run: [*run.glob("*-grow/answers/window-0-base.json")],
        "inside the training of a new expert": lambda run: steps(run, f"*-grow/grown/{tried[0]}/metrics.jsonl", 2),
        "behind it": lambda run: [*run.glob(f"*-grow/grown/{tried[0]}/result.json")],
        "before the panel is written": lambda run: [*run.glob("*-grow/answers/second-base.json")],
    }
    for name, moment in moments.items():
        assert killed_when(often, moment), (name, (often / "out.txt").read_text())
        assert not [*(often / "mini-none").glob("*-grow/panel/panel.json")], name
    found = finished(often)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
