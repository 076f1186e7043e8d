"""What a run cost."""

from cxr_ml.records import Run
from cxr_ml.reporting import formatting


def gpu(run: Run) -> str:
    """How long GPUs were at work, in a sentence: wall time of training, and of judging if known, times GPUs."""
    trained = {m.model: sum(m.seconds.values()) for m in run.models}
    if not trained:
        return ""
    names = [str(m.hardware.get("gpus", "")) for m in run.models]
    judged = sum(s for step, s in run.seconds.items() if step.endswith("evaluate"))
    told = f"training {formatting.duration(sum(trained.values()))}"
    if judged:
        told += f", judging {formatting.duration(judged)}"
    if not all(m.hardware for m in run.models):  # of an earlier version
        return f"Not known; {told}."
    if not any(names):
        return f"None was used: {told} on the processor."
    used = [len(name.split(", ")) if name else 0 for name in names]
    spent = sum(n * t for n, t in zip(used, trained.values(), strict=True)) + max(used) * judged
    return f"{spent:,.0f} GPU seconds on {'; '.join(sorted(set(filter(None, names))))}: {told}."
