"""What every stage that trains does with its policy then: it is saved, served, evaluated and compared.

Apart from orchestra/work/policies.py, so that stages that train nothing do not depend on what is read of data sources.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from models.adapters import adapter_sha256, adapter_tensors, save_adapter
from models.expert_files import MOMENTS
from models.training import TrainingError, checkpoint_at
from orchestra.work.context import ADAPTER, StageContext
from orchestra.work.perplexity import measure
from orchestra.work.policies import divergences, evaluated, measured, serve
from settings.files import linked

if TYPE_CHECKING:
    from peft import PeftModel

    from evals.evaluate import Evaluation
    from orchestra.run.ledger import StageResult


def trained(context: StageContext, policy: PeftModel, result: StageResult, *, steps: int, tokens: int) -> StageResult:
    """Save what was trained, evaluate it and say how far it went from base and SFT policy.

    Args:
        result: what the stage has to say of its training.
        steps, tokens: optimizer steps, and tokens generated or trained on.

    Raises:
        TrainingError: the processes trained different policies.
        EngineError: the engine does not serve the policy.
    """
    hashes = context.processes.gather(adapter_sha256(adapter_tensors(policy)))
    if len(set(hashes)) > 1:
        raise TrainingError("the processes of this run do not hold the same policy after training")
    sha256 = context.once(lambda: save_adapter(policy, context.folder / ADAPTER))
    # they are those of the last step, whichever step's adapter is kept
    if context.expert is not None and result.extra.get("kept_step", steps) == steps:
        context.once(lambda: _keep_moments(context, steps))
    serve(context, policy)
    evaluation, asked = evaluated(context)
    extra = result.extra | divergences(context, policy, asked) | _modelled(context, policy, evaluation)
    result = replace(result, extra=extra, steps=steps, tokens=tokens, adapter_sha256=sha256)
    return measured(context, evaluation, result)


def _keep_moments(context: StageContext, steps: int) -> None:
    target = context.folder / ADAPTER / MOMENTS
    target.unlink(missing_ok=True)  # of a run that was killed
    linked(checkpoint_at(context.folder / "checkpoints", steps) / MOMENTS, target)


def _modelled(context: StageContext, policy: PeftModel, evaluation: Evaluation) -> dict[str, float]:
    """Perplexities beside accuracy, said and kept (orchestra/work/perplexity.py)."""
    found = measure(context, policy, evaluation)
    if found is None:
        return {}
    warnings = found.warnings()
    for line in (found.line(), *(f"warning: {warning}" for warning in warnings.values())):
        context.progress.say(f"    {line}")
    told = {f"perplexity_{name}": one.after.perplexity for name, one in found.sources.items()}
    return told | {"perplexity_warnings": len(warnings)}
