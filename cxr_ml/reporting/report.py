"""The report of a run: one HTML page that opens from disk, without a network."""

import base64
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd
from markupsafe import Markup

from cxr_ml import layout
from cxr_ml.errors import Refused
from cxr_ml.records import Dataset, Evaluation, Explanation, Metrics, OperatingPoint, Run, Unsent
from cxr_ml.reporting import data_figures, durations, figures, html_pages, links, narrative
from cxr_ml.reporting.examples import Example, Refusal
from cxr_ml.settings import GateSettings, Settings
from cxr_ml.store import ObjectStore

NOTHING_NEW = "nothing_new"
_RUN = re.compile(r"[A-Za-z0-9_.~:+-]{1,200}")  # Airflow's allowed_run_id_pattern, and a length


class ReportContext(NamedTuple):
    """What a report shows beside the record of its run."""

    histories: Mapping[str, pd.DataFrame] = {}  # model -> its epochs, as `figures.losses` takes them
    documents: Mapping[str, str] = {}  # title -> link relative to the page, e.g. Data Docs
    explanation: Explanation | None = None  # where the chosen candidate looked; None where nobody asked
    sheets: Mapping[str, bytes] = {}  # label -> contact sheet of the explanation, PNG
    versions: Sequence[Dataset] = ()  # the dataset and those that it descends from
    refusals: Sequence[Refusal] = ()  # examples of refused files
    unsent: Sequence[Unsent] = ()  # mails about the run that somebody still waits for
    run_link: str = ""  # address of the run in Airflow, "" where there is none


class _Candidate(NamedTuple):
    """What the page shows of one candidate."""

    evaluation: Evaluation
    operating_point: OperatingPoint | None
    differences: list[str]  # figures whose difference to the champion is shown
    corrupted: list[tuple[str, Metrics, Metrics | None]]  # what was done to the images, own and champion's metrics
    lungs: list[tuple[str, bool]]  # sentences on the lungs hidden, and whether each is a warning


class _Plots(NamedTuple):
    """The pictures of the page as data URLs; None where there is nothing to draw."""

    recalls: Markup | None
    difference: Markup | None
    matrices: list[tuple[str, Markup]]  # title, confusion matrix
    sheets: list[tuple[str, Markup]]  # label, contact sheet
    losses: list[tuple[str, Markup]]  # model, loss curve
    balance: Markup | None
    growth: Markup | None
    refused: Markup | None


def _data_url(image: bytes, kind: str = "png") -> Markup:
    return Markup("data:image/") + kind + ";base64," + base64.b64encode(image).decode()


def render(run: Run, settings: Settings, context: ReportContext = ReportContext()) -> str:  # noqa: B008 - immutable
    """Returns the report as one self-contained HTML page.

    Args:
        run: everything that happened.
        settings: the floors that the gate used, and the address of the UI.
        context: what is shown beside it.

    Raises:
        Refused: a link that is neither relative nor http(s).
    """
    reasons = _count_reasons(run)
    return html_pages.render_template(
        "report.html.j2",
        run=run,
        **narrative.summarize(run, settings.gate)._asdict(),
        note=narrative.NOTE,
        candidates=_candidates(run, settings.gate),
        plots=_draw(run, settings.gate, context, reasons),
        kept={name: figures.best_epochs(h) for name, h in context.histories.items() if not h.empty},
        explained=context.explanation,
        batches=[(batch, *narrative.table(batch)) for batch in run.batches],
        shortcuts=narrative.shortcuts(run.dataset),
        drift=narrative.drift(run.dataset),
        rulings=[narrative.ruled(ruling) for ruling in run.rulings],
        reasons=sorted(reasons, key=lambda code: (-reasons[code], code)),
        refusals=[(refusal, [(e, _thumbnail(e)) for e in refusal.examples]) for refusal in context.refusals],
        quarantine_link=links.console(settings.mail, "quarantine"),
        gpu=durations.gpu(run),
        documents=context.documents,
        links=links.of_run(settings.mail, run.run, context.run_link, [m.model for m in run.models]),
        unsent=context.unsent,
    )


def _count_reasons(run: Run) -> dict[str, int]:
    """Reason code -> files of all batches of the run that were refused for it."""
    totals: dict[str, int] = {}
    for batch in run.batches:
        for code, files in batch.reasons.items():
            totals[code] = totals.get(code, 0) + files
    return totals


def _candidates(run: Run, settings: GateSettings) -> list[_Candidate]:
    points = {m.model: m.operating_point for m in run.models}
    chosen = narrative.chosen(run)
    differences = narrative.differences(chosen) if chosen is not None else []
    return [
        _Candidate(
            e, points.get(e.model), differences, narrative.disguises(e), narrative.lungs(e, settings.lungs_hidden_limit)
        )
        for e in run.evaluations
    ]


def _draw(run: Run, settings: GateSettings, context: ReportContext, reasons: dict[str, int]) -> _Plots:
    chosen = narrative.chosen(run)
    recalls = difference = None
    matrices = []
    if chosen is not None:
        recalls = _data_url(figures.recalls(run, settings.recall_floors))
        if chosen.difference:
            difference = _data_url(figures.differences(chosen, settings.margins))
        for role, e in (("candidate", chosen), ("champion", chosen.champion)):
            if e is not None:
                picture = _data_url(figures.confusion(e.test, tuple(e.test.classes)))
                matrices.append((f"{role} {e.architecture}", picture))
    models = [m.model for m in run.models] or [e.model for e in run.evaluations]
    return _Plots(
        recalls,
        difference,
        matrices,
        sheets=[(label, _data_url(png)) for label, png in context.sheets.items()],
        losses=[(model, _data_url(figures.losses(model, context.histories.get(model)))) for model in models],
        balance=_data_url(data_figures.balance(run)) if run.dataset is not None else None,
        growth=_data_url(data_figures.growth(context.versions)) if len(context.versions) > 1 else None,
        refused=_data_url(data_figures.refused(reasons)) if reasons else None,
    )


def _thumbnail(example: Example) -> Markup | None:
    return _data_url(example.thumbnail, "jpeg") if example.thumbnail else None


def load_ended(store: ObjectStore, run: str) -> Run | None:
    """Returns the record of a run that has its report; None where nothing was new, for such a run may go on."""
    stored = store.load_or_none(layout.run_record(run), Run)
    return stored[0] if stored is not None and stored[0].outcome != NOTHING_NEW else None


def write(store: ObjectStore, settings: Settings, run: Run, context: ReportContext = ReportContext()) -> str:  # noqa: B008 - immutable
    """Stores `reports/<run>/index.html`, then `reports/<run>/run.json`, each once; doing it again changes nothing.

    The page of an earlier failure is replaced, and so is that of a run with nothing new: the run went on, and has ended
    now.

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
    folder = layout.report_folder(run.run)
    key = folder + "index.html"
    stored, etag = store.load_or_none(folder + "run.json", Run) or (None, None)
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
    html = render(run, settings, context).encode()
    store.put_uncommitted(key, html, "text/html; charset=utf-8")
    store.swap(folder + "run.json", run.to_bytes(), etag)
    return key
