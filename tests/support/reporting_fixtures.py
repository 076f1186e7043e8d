"""Fixtures for tests of reports and mails: a mail server, and a store with candidates that were evaluated."""

import io

import pytest


@pytest.fixture
def blank_plots(request, monkeypatch):
    """Plots are left blank where a test looks at what stands around them: to draw those of a page takes seconds."""
    from PIL import Image

    from cxr_ml.reporting import data_figures, figures

    if not request.node.get_closest_marker("plots"):
        buffer = io.BytesIO()
        Image.new("L", (1, 1)).save(buffer, "PNG")
        for plot in ("losses", "recalls", "differences", "confusion"):
            monkeypatch.setattr(figures, plot, lambda *_: buffer.getvalue())
        for plot in ("balance", "growth", "refused"):
            monkeypatch.setattr(data_figures, plot, lambda *_: buffer.getvalue())


@pytest.fixture
def mail_server():
    """A mail server that takes every mail."""
    import smtp_samples

    controller = smtp_samples.started()
    yield controller
    controller.stop()


@pytest.fixture
def pauses(monkeypatch):
    """The pauses between tries of a mail about a failure, not waited for."""
    from cxr_ml.reporting import notify

    pauses = []
    monkeypatch.setattr(notify.time, "sleep", pauses.append)
    return pauses


@pytest.fixture
def filled(settings, mail_server):
    """Settings of a store with a batch, a dataset and two evaluated candidates, and of a mail server."""
    import run_samples
    import smtp_samples

    run_samples.fill(settings)
    known = (run_samples.TEAM, run_samples.SECOND)
    mail = {"sender": "cxr@hospital.example", "allowed": known, "recipients": known[:1]}
    return smtp_samples.at(mail_server, settings, **mail)
