"""The command line with stages that only pretend, one of which (`explore`) stands still at step 3 of 30.

python tests/live_run.py GO SECONDS run 40d ...

It goes on when the file GO is there. Pages come at once one after another where SECONDS, between two of them, is 0.
"""

import json
import sys
import time
from pathlib import Path

import pytest
from fake_stages import Fake

from orchestra import cli
from orchestra.run import live


class Standing(Fake):
    """`explore` stands still until `go()`."""

    def __init__(self, go):
        super().__init__()
        self.go = go

    def __call__(self, context):
        if context.stage.name == "explore" and not self.go():
            with (
                context.progress.bar("explore: optimise", 30, "steps") as bar,
                (context.folder / "metrics.jsonl").open("a") as file,
            ):
                bar.at(0)
                for step in (1, 2, 3):
                    time.sleep(0.01)
                    bar.at(step)
                    file.write(json.dumps({"step": step, "reward": step / 8, "kl": 0.001, "beta": 0.0}) + "\n")
                file.write('{"step": 4, "rew')
                file.flush()
                while not self.go():
                    time.sleep(0.05)
        return super().__call__(context)


def main():
    go, seconds = sys.argv[1:3]
    Standing(Path(go).exists).instead(pytest.MonkeyPatch())
    live.PAGE_SECONDS, live.TICK_SECONDS = float(seconds), 0.1
    live.SHARE = live.SHARE if live.PAGE_SECONDS else 1e9
    sys.argv = ["orchestra", *sys.argv[3:]]
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
