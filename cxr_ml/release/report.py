"""The report of a run: one HTML page that opens from disk, without a network."""

import base64
import math
import re
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from cxr_ml import store
from cxr_ml.errors import Refused
from cxr_ml.records import Explanation, Run
from cxr_ml.release import figures, reading, words
from cxr_ml.settings import Settings

_RUN = re.compile(r"[A-Za-z0-9_.~:+-]{1,200}")  # Airflow's allowed_run_id_pattern, and a length


def _clean(value: object) -> object:
    return words.plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=select_autoescape(enabled_extensions=("html.j2",), default=False),
        undefined=StrictUndefined,
        finalize=_clean,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": words.percent,
        "score": words.score,
        "observed": words.observed,
        "duration": words.duration,
        "plain": words.plain,
        "span": words.span,
        "signed": words.signed,
        "factor": math.exp,
        "link": safe_link,
    }
    return environment


def _markdown(value: object) -> object:
    return words.markdown(value) if isinstance(value, str) else value


def page(template: str, **values: Any) -> str:  # noqa: ANN401 - a template takes anything
    """A template of this package filled in; names ending in .html.j2 or .md.j2 are escaped, all texts made harmless."""
    environment = _environment()
    if template.endswith(".md.j2"):
        environment = environment.overlay(finalize=_markdown)
    return environment.get_template(template).render(**values)


def safe_link(link: str) -> str:
    """`link` when it is relative or goes to http or https.

    Raises:
        Refused: another scheme, such as javascript: or data:.
    """
    if urlsplit(link).scheme not in {"", "http", "https"} or words.plain(link) != link:
        raise Refused(f"A link must be relative, http or https. Received: {link!r}")
    return link


def _picture(png: bytes) -> Markup:
    return Markup("data:image/png;base64,") + base64.b64encode(png).decode()


Explained = tuple[Explanation, dict[str, bytes]]  # and the contact sheet of each class, PNG


def render(
    run: Run,
    settings: Settings,
    histories: dict[str, pd.DataFrame],
    documents: dict[str, str],
    explained: Explained | None = None,
) -> str:
    """The report as one self-contained HTML page.

    Args:
        run: everything that happened.
        settings: the floors that the gate used, and the address of the UI.
        histories: model -> epochs, as `figures.losses` takes them; a missing one is said to be missing.
        documents: title -> link relative to the page, e.g. Data Docs.
        explained: where the chosen candidate looked; None where nobody asked.

    Raises:
        Refused: a link that is neither relative nor http(s).
    """
    evaluation = reading.chosen(run)
    matrices = []
    if evaluation is not None:
        shown = [("candidate", evaluation)] + ([("champion", evaluation.champion)] if evaluation.champion else [])
        matrices = [
            (f"{title} {e.architecture}", _picture(figures.confusion(e.test, tuple(e.test.classes))))
            for title, e in shown
        ]
    names = [m.model for m in run.models] or [e.model for e in run.evaluations]
    return page(
        "report.html.j2",
        run=run,
        outcome=reading.outcome(run),
        reason=reading.reason(run),
        note=reading.NOTE,
        version=reading.version(run),
        architecture=reading.architecture(run),
        headline=reading.headline(run, settings),
        chosen=evaluation,
        choice=reading.choice(run),
        disguises=reading.disguises,
        differences=reading.differences(evaluation) if evaluation is not None else [],
        lungs=partial(reading.lungs, limit=settings.lungs_hidden_limit),
        points={m.model: m.operating_point for m in run.models},
        failed=reading.failed(run),
        losses=[(name, _picture(figures.losses(name, histories.get(name)))) for name in names],
        best={n: figures.best_epochs(h) for n, h in histories.items() if h is not None and not h.empty},
        matrices=matrices,
        explained=explained[0] if explained else None,
        sheets=[(label, _picture(png)) for label, png in explained[1].items()] if explained else [],
        recalls=_picture(figures.recalls(run, settings.recall_floors)) if evaluation is not None else None,
        balance=_picture(figures.balance(run)) if run.dataset is not None else None,
        batches=[(batch, *reading.table(batch)) for batch in run.batches],
        shortcuts=reading.shortcuts(run.dataset),
        drift=reading.drift(run.dataset),
        rulings=[reading.ruled(r) for r in run.rulings],
        documents=documents,
        ui_url=settings.ui_url,
    )


def write(
    settings: Settings,
    run: Run,
    histories: dict[str, pd.DataFrame],
    documents: dict[str, str],
    explained: Explained | None = None,
) -> str:
    """Stores `reports/<run>/index.html`, then `reports/<run>/run.json`, each once; doing it again changes nothing.

    The page of a failure that came before is replaced: the run went on, and has ended now.

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
    found = store.find(settings, folder + "run.json")
    if found is None:
        html = render(run, settings, histories, documents, explained).encode()
        store.put_uncommitted(settings, key, html, "text/html; charset=utf-8")
        store.put_if_absent(settings, folder + "run.json", run.to_bytes(), "application/json")
        return key
    stored = Run.model_validate_json(found[0])
    # A rollback may have moved the champion between two tries of the same report; nothing else may differ.
    if stored.model_copy(update={"champion": run.champion}).to_bytes() != run.to_bytes():
        raise Refused(
            f"The report of run {run.run!r} is already stored with outcome {stored.outcome!r}, and differs from "
            f"what is to be written now. Received outcome: {run.outcome!r}. A report is never changed: trigger a "
            "new run instead of clearing tasks of an old one."
        )
    return key
