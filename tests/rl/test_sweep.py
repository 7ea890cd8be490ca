"""A GRPO stage asked on its way, by the engine that it samples with, is the stage that nobody asks."""

import pytest
import tiny
import torch
from tiny_grpo import Interrupted, Stage

from models.sweep import FILE, Sweep, read_sweep


def ask(stage, folder, stop_at=None, **settings):
    """Run it so that the policy is pushed into the engine and answers, every second step."""

    def sweep(policy, served, settings):
        def measure(step):
            served.push(policy, step)
            (answers,) = served.engine.generate([[7, 8, 9]], tiny.sampling(6, n=4), [step])
            torch.rand(5)
            # as in arithmetic that rounds: engine and policy are never off by just as much again
            served.mismatch += step
            if step == stop_at:
                raise Interrupted
            return {"accuracy": sum(len(one.token_ids) for one in answers)}

        return Sweep(policy, folder, settings, measure)

    stage.sweep, stage.settings = sweep, {"steps": 5, "evaluate_every": 2, "keep": "best"} | settings
    return stage.run(folder)


def told(run):
    """All but times and counts that TRL begins anew."""
    return [{k: v for k, v in line.items() if "seconds" not in k and "per_second" not in k} for line in run.metrics]


@pytest.mark.slow
@pytest.mark.parametrize("iterations, every", [(1, 2), (2, 1)])
def test_asking_does_not_change_training(tiny_path, transformers_engine, tmp_path, iterations, every):
    """With dropout, which draws at every step; between two iterations over a batch as well as behind them."""
    settings = {"num_iterations": iterations, "evaluate_every": every}
    asked = ask(Stage(tiny_path, transformers_engine, dropout=0.2), tmp_path / "asked", **settings)
    alone = Stage(tiny_path, transformers_engine, dropout=0.2, settings={"steps": 5, "num_iterations": iterations}).run(
        tmp_path / "alone"
    )
    assert [line["step"] for line in read_sweep(asked.folder)] == [
        step for step in range(1, 6) if step % every == 0 or step == 5
    ]
    assert asked.sha256 == alone.sha256 and told(asked) == told(alone)
    assert not (alone.folder / FILE).exists()
    with pytest.raises(Interrupted):
        ask(Stage(tiny_path, transformers_engine, dropout=0.2), tmp_path / "cut", 4, **settings)
    again = ask(Stage(tiny_path, transformers_engine, dropout=0.2), tmp_path / "cut", **settings)
    assert again.sha256 == alone.sha256 and read_sweep(again.folder) == read_sweep(asked.folder)
