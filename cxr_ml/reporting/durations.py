"""How long GPUs were at work for a run."""

from cxr_ml.records import Run
from cxr_ml.reporting import formatting


def gpu(run: Run) -> str:
    """Returns how long GPUs were at work, in a sentence: wall time of training and evaluation, times GPUs."""
    training = {m.model: sum(m.seconds.values()) for m in run.models}
    if not training:
        return ""
    evaluation = sum(s for step, s in run.seconds.items() if step.endswith("evaluate"))
    parts = f"training {formatting.duration(sum(training.values()))}"
    if evaluation:
        parts += f", judging {formatting.duration(evaluation)}"
    names = [str(m.hardware.get("gpus", "")) for m in run.models]
    if not any(names):
        return f"None was used: {parts} on the processor."
    gpus = [len(name.split(", ")) if name else 0 for name in names]
    total = sum(n * seconds for n, seconds in zip(gpus, training.values(), strict=True)) + max(gpus) * evaluation
    return f"{total:,.0f} GPU seconds on {'; '.join(sorted(set(filter(None, names))))}: {parts}."
