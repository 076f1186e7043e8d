"""Prints what a run did, from what it left in the store and in the maildir."""

import mailbox
from email.header import decode_header, make_header
from pathlib import Path

from rich.console import Console

from cxr_ml import layout
from cxr_ml.records import Run
from cxr_ml.registry.promotion import slug
from cxr_ml.reporting import deliveries
from cxr_ml.reporting.terminal import show_run
from cxr_ml.store import ObjectStore


def fetch_report(store: ObjectStore, run: str, reports: Path) -> Path | None:
    """Copies the report of `run` (its slug) to `reports/<run>/`. Returns its index.html, None where there is none."""
    prefix = layout.report_folder(run)
    folder = (reports / run).resolve()
    for key in store.keys(prefix):
        path = (folder / key.removeprefix(prefix)).resolve()
        if not path.is_relative_to(folder) or path == folder:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(store.get(key))
    index = folder / "index.html"
    return index if index.is_file() else None


def read_subjects(maildir: Path) -> dict[str, str]:
    """Returns name of each mail's file in `maildir` -> its subject, as one line of printable text."""
    if not maildir.is_dir():
        return {}
    subjects = {}
    for name, message in sorted(mailbox.Maildir(maildir, create=False).items()):  # by time
        subject = str(make_header(decode_header(str(message.get("Subject", "")))))
        printable = "".join(c if c.isprintable() else " " for c in subject)
        subjects[name] = " ".join(printable.split())  # long headers are folded
    return subjects


def print_summary(store: ObjectStore, run_id: str, state: Path, known_mails: set[str], console: Console) -> None:
    """Prints what became of the run `run_id` and which mails are new, and copies its report to `state/reports/`."""
    run_slug = slug(run_id)
    key = layout.run_record(run_slug)
    console.print()
    report = fetch_report(store, run_slug, state / "reports")
    if store.exists(key):
        show_run(store.load(key, Run), console)
    elif report:
        console.print("The run failed before its report; a page tells where, why, and what to do.", soft_wrap=True)
    else:
        console.print("The run left no report: see its steps in Airflow.", soft_wrap=True)
    if report:
        console.print(f"Report    {report}", markup=False, highlight=False, soft_wrap=True)
        address = f"s3://{store.bucket}/{store.prefix}{layout.report_page(run_slug)}"
        console.print(f"          {address}", markup=False, highlight=False, soft_wrap=True)
    new = {name: subject for name, subject in read_subjects(state / "maildir").items() if name not in known_mails}
    console.print(f"Mails     {len(new)} new in {state / 'maildir'}", markup=False, highlight=False, soft_wrap=True)
    for missed in deliveries.find_unsent(store, run_slug):
        warning = f"Warning   no mail to {', '.join(missed.to)}: {missed.why}"
        console.print(warning, markup=False, highlight=False, soft_wrap=True)
    for subject in new.values():
        console.print(f"          {subject}", markup=False, highlight=False, soft_wrap=True)
