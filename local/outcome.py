"""Tells what a run did, from what it left in the store and in the maildir."""

import mailbox
import math
from email.header import decode_header, make_header
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cxr_ml import store
from cxr_ml.records import Batch, Decision, Evaluation, Run
from cxr_ml.release.registry import slug
from cxr_ml.settings import Settings

VERDICTS = {
    "accepted": "accepted",
    "quarantined": "quarantined",
    "rejected_class": "rejected",
    "duplicate": "duplicate",
}


def _figure(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def batch_table(batch: Batch) -> Table:
    """Files of a drop by class and verdict."""
    shown = Table(title=f"Batch {escape(batch.batch)}", title_justify="left", title_style="bold")
    shown.add_column("Class")
    for words in VERDICTS.values():
        shown.add_column(words, justify="right")
    for label in sorted({label for counts in batch.counts.values() for label in counts}):
        shown.add_row(escape(label), *(str(batch.counts.get(verdict, {}).get(label, 0)) for verdict in VERDICTS))
    return shown


def batch_reasons(batch: Batch) -> list[str]:
    """Why files and classes of a drop were not accepted."""
    lines = [f"class {label} rejected: {why}" for label, why in sorted(batch.rejected_classes.items())]
    lines += [
        f"{files} × {reason}" for reason, files in sorted(batch.reasons.items(), key=lambda item: (-item[1], item[0]))
    ]
    return lines


def evaluation_table(evaluations: tuple[Evaluation, ...], chosen: str | None) -> Table:
    """Recall and F1 of each candidate on the test images, and the champion's on the same ones."""
    champion = next((e.champion for e in evaluations if e.champion), None)
    shown = Table(title="On the test images: recall / F1", title_justify="left", title_style="bold")
    shown.add_column("Model")
    labels = list(evaluations[0].test.classes)
    for label in labels:
        support = evaluations[0].test.classes[label].support
        shown.add_column(f"{escape(label)} ({support})", justify="right")
    shown.add_column("macro F1", justify="right")
    rows = [
        (f"{e.architecture} {'candidate' if e.model == chosen else 'not chosen'}\n{e.model}", e) for e in evaluations
    ]
    if champion:
        rows.append((f"{champion.architecture} champion\n{champion.model}", champion))
    for name, evaluation in rows:
        cells = [
            f"{_figure(metrics.recall)} / {_figure(metrics.f1)}"
            for metrics in (evaluation.test.classes[label] for label in labels)
        ]
        shown.add_row(escape(name), *cells, _figure(evaluation.test.macro_f1))
    return shown


def gate_table(decision: Decision) -> Table:
    """The gate's checks, one by one."""
    shown = Table(title="The gate", title_justify="left", title_style="bold")
    for column in ("Check", "Observed", "Limit", "Passed", "Reason"):
        shown.add_column(column)
    for check in decision.checks:
        observed = "not evaluated" if check.observed is None else f"{check.observed:.4g}"
        passed = "[green]yes[/]" if check.passed else "[bold red]no[/]"
        shown.add_row(escape(check.name), observed, escape(check.limit), passed, escape(check.reason))
    return shown


def fetch_report(settings: Settings, run: str, reports: Path) -> Path | None:
    """Copies the report of `run` (its slug) from the store to `reports/<run>/`. Path of index.html, None without one."""
    prefix = f"reports/{run}/"
    folder = (reports / run).resolve()
    for key in store.keys(settings, prefix):
        path = (folder / key.removeprefix(prefix)).resolve()
        if not path.is_relative_to(folder) or path == folder:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(store.get(settings, key))
    index = folder / "index.html"
    return index if index.is_file() else None


def mails(maildir: Path) -> dict[str, str]:
    """Name of each mail's file in `maildir` -> its subject, as one line of printable text."""
    if not maildir.is_dir():
        return {}
    found = mailbox.Maildir(maildir, create=False)
    subjects = {}
    for key, message in found.items():
        subject = str(make_header(decode_header(str(message.get("Subject", "")))))
        subjects[key] = "".join(c if c.isprintable() else " " for c in subject)
    return subjects


def show(settings: Settings, run_id: str, state: Path, mails_before: set[str], console: Console) -> None:
    """Prints what became of the run `run_id`, and copies its report to `state/reports/`."""
    run_slug = slug(run_id)
    key = f"reports/{run_slug}/run.json"
    if not store.exists(settings, key):
        console.print("\nThe run left no report: nothing was new in the inbox, or it failed before the report.")
    else:
        run = store.load(settings, key, Run)
        for batch in run.batches:
            console.print()
            console.print(batch_table(batch))
            for line in batch_reasons(batch):
                console.print(f"  {escape(line)}", highlight=False)
        if run.evaluations:
            console.print()
            console.print(evaluation_table(run.evaluations, run.decision.model if run.decision else None))
        if run.decision:
            console.print()
            console.print(gate_table(run.decision))
            colour, words = ("green", "Promoted") if run.decision.promote else ("yellow", "Refused")
            console.print(f"[bold {colour}]{words}:[/] {escape(run.decision.reason)}", highlight=False)
        console.print(f"\nOutcome   {escape(run.outcome.replace('_', ' '))}", highlight=False)
        now = f"version {run.champion.version}, {run.champion.model}" if run.champion else "none yet"
        console.print(f"Champion  {escape(now)}", highlight=False)
    report = fetch_report(settings, run_slug, state / "reports")
    if report:
        console.print(f"Report    {report}", markup=False, highlight=False, soft_wrap=True)
        where = f"s3://{settings.bucket}/{settings.prefix}reports/{run_slug}/index.html"
        console.print(f"          {where}", markup=False, highlight=False, soft_wrap=True)
    new = {name: subject for name, subject in mails(state / "maildir").items() if name not in mails_before}
    console.print(f"Mails     {len(new)} new in {state / 'maildir'}", markup=False, highlight=False, soft_wrap=True)
    for subject in new.values():
        console.print(f"          {subject}", markup=False, highlight=False, soft_wrap=True)
