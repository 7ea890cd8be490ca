"""Stages of recipe 40d that only pretend, for the runner and the command line."""

import json
import os
import sys
import types

from orchestra.run.ledger import StageResult
from orchestra.stages import all_kinds

STAGES = ["base", "traces", "imitate", "explore", "consolidate", "polish", "release"]


class FakeResources:
    closed = 0

    def close(self):
        FakeResources.closed += 1


class Fake:
    """Stage functions that note their calls and write small files."""

    def __init__(self, accuracy=None, fail=None):
        self.calls, self.contexts, self.accuracy, self.fail = [], {}, accuracy or {}, fail or {}

    def __call__(self, context):
        name, kind = context.stage.name, context.stage.kind
        self.calls.append(name)
        self.contexts[name] = context
        print("chatter of", name)
        os.write(2, b"chatter from C\n")
        if name in self.fail:
            raise self.fail[name]
        if kind == "distill":
            (context.folder / "traces.jsonl").write_text(json.dumps({"seed": context.recipe.seed}))
        if kind in ("sft", "grpo"):
            (context.folder / "adapter").mkdir(exist_ok=True)
            (context.folder / "adapter" / "adapter_model.safetensors").write_text(f"{context.stage!r}")
            (context.folder / "checkpoints").mkdir(exist_ok=True)
        accuracy = self.accuracy.get(name, 0.5)
        return StageResult(name=name, kind=kind, accuracy=accuracy, low=accuracy - 0.1, high=accuracy + 0.1)

    def instead(self, monkeypatch):
        """Run this instead of every kind's own work, and without engines."""
        for kind in all_kinds().values():
            monkeypatch.setattr(kind, "run", lambda stage, context: self(context))
        module = types.ModuleType("orchestra.work.resources")
        module.Resources = lambda *_: FakeResources()
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return self
