"""A fixture with which a drop of a few files is judged quickly."""

import pytest

from cxr_ml.ingest import worker_pool
from cxr_ml.validation import judge_batch, suites, verdicts

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
def handful(request, monkeypatch):
    """Judges a few files quickly: in this process, by a third of the rules, with a page of its title alone.

    For tests of what becomes of a batch. Those of ingest, workers and validate look at processes, rules and pages, and
    so do those that are marked `processes`.
    """
    if request.node.get_closest_marker("processes"):
        return

    def few_rules(folder, name):
        suite = suites.load_suite(folder, name)
        if name != "classes":
            suite.expectations = [e for e in suite.expectations if e.column in RULES]
        return suite

    in_turn = lambda function, fixed, jobs, processes: enumerate(function(fixed, job) for job in jobs)  # noqa: E731
    monkeypatch.setattr(worker_pool, "run", in_turn)
    monkeypatch.setattr(verdicts, "load_suite", few_rules)
    monkeypatch.setattr(suites, "_page", lambda validated: f"<title>Data Docs: {validated.suite_name}</title>")
    monkeypatch.setattr(judge_batch, "check_suites", lambda settings: None)
