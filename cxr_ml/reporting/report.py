"""The report of a run: one HTML page that opens from disk, without a network."""

import base64
import re
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import pandas as pd
from markupsafe import Markup

from cxr_ml import store
from cxr_ml.errors import Refused
from cxr_ml.records import Dataset, Explanation, Run
from cxr_ml.reporting import data_figures, durations, figures, links, narrative
from cxr_ml.reporting.examples import Refusal
from cxr_ml.reporting.html_pages import page
from cxr_ml.settings import Settings

NOTHING_NEW = "nothing_new"
_RUN = re.compile(r"[A-Za-z0-9_.~:+-]{1,200}")  # Airflow's allowed_run_id_pattern, and a length


def _picture(data: bytes, kind: str = "png") -> Markup:
    return Markup("data:image/") + kind + ";base64," + base64.b64encode(data).decode()


Explained = tuple[Explanation, dict[str, bytes]]  # and the contact sheet of each class, PNG


class Beside(NamedTuple):
    """What a report shows beside the record of the run."""

    versions: Sequence[Dataset] = ()  # the dataset and those that it descends from
    refusals: Sequence[Refusal] = ()
    run_link: str = ""  # address of the run in Airflow, "" where there is none


ALONE = Beside()


def render(
    run: Run,
    settings: Settings,
    histories: dict[str, pd.DataFrame],
    documents: dict[str, str],
    explained: Explained | None = None,
    beside: Beside = ALONE,
) -> str:
    """The report as one self-contained HTML page.

    Args:
        run: everything that happened.
        settings: the floors that the gate used, and the address of the UI.
        histories: model -> epochs, as `figures.losses` takes them; a missing one is said to be missing.
        documents: title -> link relative to the page, e.g. Data Docs.
        explained: where the chosen candidate looked; None where nobody asked.
        beside: earlier versions of the dataset, examples of refused files, the run in Airflow.

    Raises:
        Refused: a link that is neither relative nor http(s).
    """
    evaluation = narrative.chosen(run)
    matrices = []
    if evaluation is not None:
        shown = [("candidate", evaluation)] + ([("champion", evaluation.champion)] if evaluation.champion else [])
        matrices = [
            (f"{title} {e.architecture}", _picture(figures.confusion(e.test, tuple(e.test.classes))))
            for title, e in shown
        ]
    names = [m.model for m in run.models] or [e.model for e in run.evaluations]
    reasons: dict[str, int] = {}
    for code, files in ((c, n) for batch in run.batches for c, n in batch.reasons.items()):
        reasons[code] = reasons.get(code, 0) + files
    return page(
        "report.html.j2",
        run=run,
        outcome=narrative.outcome(run),
        reason=narrative.reason(run),
        note=narrative.NOTE,
        version=narrative.version(run),
        architecture=narrative.architecture(run),
        headline=narrative.headline(run, settings),
        chosen=evaluation,
        choice=narrative.choice(run),
        disguises=narrative.disguises,
        differences=narrative.differences(evaluation) if evaluation is not None else [],
        lungs=partial(narrative.lungs, limit=settings.lungs_hidden_limit),
        points={m.model: m.operating_point for m in run.models},
        failed=narrative.failed(run),
        losses=[(name, _picture(figures.losses(name, histories.get(name)))) for name in names],
        kept={n: figures.kept_epochs(h) for n, h in histories.items() if h is not None and not h.empty},
        matrices=matrices,
        explained=explained[0] if explained else None,
        sheets=[(label, _picture(png)) for label, png in explained[1].items()] if explained else [],
        recalls=_picture(figures.recalls(run, settings.recall_floors)) if evaluation is not None else None,
        difference=_picture(figures.differences(evaluation, settings.margins))
        if evaluation is not None and evaluation.difference
        else None,
        balance=_picture(data_figures.balance(run)) if run.dataset is not None else None,
        growth=_picture(data_figures.growth(beside.versions)) if len(beside.versions) > 1 else None,
        refused=_picture(data_figures.refused(reasons)) if reasons else None,
        refusals=[
            (r, [(e, _picture(e.thumbnail, "jpeg") if e.thumbnail else None) for e in r.examples])
            for r in beside.refusals
        ],
        batches=[(batch, *narrative.table(batch)) for batch in run.batches],
        shortcuts=narrative.shortcuts(run.dataset),
        drift=narrative.drift(run.dataset),
        rulings=[narrative.ruled(r) for r in run.rulings],
        documents=documents,
        links=links.of_run(settings, run.run, beside.run_link, [m.model for m in run.models]),
        reasons=sorted(reasons, key=lambda code: (-reasons[code], code)),
        wall=links.console(settings, "quarantine"),
        gpu=durations.gpu(run),
    )


def ended(settings: Settings, folder: str) -> bool:
    """Whether a run has its report in that folder; that nothing was new is none, for such a run may go on."""
    found = store.find_record(settings, folder + "run.json", Run)
    return found is not None and found[0].outcome != NOTHING_NEW


def write(
    settings: Settings,
    run: Run,
    histories: dict[str, pd.DataFrame],
    documents: dict[str, str],
    explained: Explained | None = None,
    beside: Beside = ALONE,
) -> str:
    """Stores `reports/<run>/index.html`, then `reports/<run>/run.json`, each once; doing it again changes nothing.

    The page of a failure that came before is replaced, and so is that of a run with nothing new: the run went on, and
    has ended now.

    Returns:
        The key of the page.

    Raises:
        Refused: a run id that cannot be part of a key, a bad link, or a run that is stored with another outcome.
    """
    if not _RUN.fullmatch(run.run) or set(run.run) == {"."}:
        raise Refused(
            "A run id must consist of 1 to 200 letters, digits, and _ . ~ : + - (Airflow's own rule). "
            f"Received: {run.run!r}"
        )
    folder = f"reports/{run.run}/"
    key = folder + "index.html"
    found = store.find_record(settings, folder + "run.json", Run)
    stored, etag = found or (None, None)
    # Between two tries of the same report, a rollback may have moved the champion, and another run may have taken in
    # what was left out; and Airflow counts the seconds of these. Nothing else may differ.
    passing = {"champion": run.champion, "seconds": run.seconds, "left_out": run.left_out}
    if stored is not None and stored.model_copy(update=passing).to_bytes() == run.to_bytes():
        return key
    if stored is not None and stored.outcome != NOTHING_NEW:
        raise Refused(
            f"The report of run {run.run!r} is already stored with outcome {stored.outcome!r}, and differs from "
            f"what is to be written now. Received outcome: {run.outcome!r}. A report is never changed: trigger a "
            "new run instead of clearing tasks of an old one."
        )
    html = render(run, settings, histories, documents, explained, beside).encode()
    store.put_uncommitted(settings, key, html, "text/html; charset=utf-8")
    store.swap(settings, folder + "run.json", run.to_bytes(), etag)
    return key
