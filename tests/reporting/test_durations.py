"""What a run cost: GPU seconds, where there was a GPU."""

import report_samples as samples

from cxr_ml.reporting import durations


def test_gpu_seconds_are_those_of_training_and_judging_times_the_gpus():
    run = samples.run(seconds={"learn.evaluate": 100.0, "report": 9.0})
    two = tuple(m.model_copy(update={"hardware": {"gpus": "NVIDIA H100, NVIDIA H100"}}) for m in run.models)
    told = durations.gpu(run.model_copy(update={"models": two}))
    # Two models of 184.2 + 1,403 seconds each, and 100 seconds of judging, on two GPUs.
    assert told.startswith("6,549 GPU seconds on NVIDIA H100, NVIDIA H100: training 52 min 54 s, judging 1 min 40 s")


def test_a_run_on_processors_or_without_training_claims_no_gpu_seconds():
    run = samples.run()
    assert durations.gpu(run) == "None was used: training 52 min 54 s on the processor."
    assert durations.gpu(run.model_copy(update={"models": ()})) == ""
