"""Fixtures with which a dozen images are a dataset, and a drop of a few files is judged quickly.

What they need is imported when they are used: tests of other parts do not wait for Great Expectations.
"""

import pytest

RULES = {
    "imbalance_ratio",
    "mean",
    "width",
    "height",
    "white_box",
    "smallest_class",
    "test_support_min",
    "groups_across_splits",
}


@pytest.fixture
def small(settings, tmp_path):
    """Settings under which a dozen images are a dataset."""
    from drop_samples import loosened

    least = {"min_value": 1}
    loose = loosened(
        settings, tmp_path / "suites", smallest_class=least, test_support_min=least, validation_support_min=least
    )
    # A hint to train still leaves a share to validation; this one leaves none, so that counts are known.
    return loose.replace(dataset={"validation_fraction": 1e-9})


@pytest.fixture
def handful(request, monkeypatch):
    """Judges a few files quickly: in this process, by a third of the rules, with a page of its title alone.

    For tests of what becomes of a batch. Those of ingest, workers and validate look at processes, rules and pages, and
    so do those that are marked `processes`.
    """
    if request.node.get_closest_marker("processes"):
        return

    from cxr_ml.ingest import worker_pool
    from cxr_ml.validation import judge_batch, suites, verdicts

    def few_rules(folder, name):
        suite = suites.load_suite(folder, name)
        if name != "classes":
            suite.expectations = [e for e in suite.expectations if e.column in RULES]
        return suite

    in_turn = lambda function, fixed, jobs, workers: enumerate(function(*fixed, job) for job in jobs)  # noqa: E731
    monkeypatch.setattr(worker_pool, "map_jobs", in_turn)
    monkeypatch.setattr(verdicts, "load_suite", few_rules)
    monkeypatch.setattr(suites, "_page", lambda validated: f"<title>Data Docs: {validated.suite_name}</title>")
    monkeypatch.setattr(judge_batch, "check_suites", lambda *_: None)
