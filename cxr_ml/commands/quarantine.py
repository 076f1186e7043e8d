"""`cxr-ml quarantine`: what was refused and why, and the rulings of humans on it."""

import getpass
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.table import Table

from cxr_ml.commands.shared import Json, connect, err, show
from cxr_ml.errors import Refused
from cxr_ml.records import Ruling
from cxr_ml.reporting import narrative
from cxr_ml.reporting.terminal import plain

app = typer.Typer(no_args_is_help=True, help="Ask about refused files, and rule on them.")
Name = Annotated[
    str, typer.Argument(metavar="FILE-OR-SHA", help="File, DROP/FILE, or 8 digits or more of its SHA-256.")
]
Why = Annotated[str, typer.Option(help="The reason, for the record.")]
By = Annotated[str | None, typer.Option(help="Who rules; default: the user of this machine.")]
Rejected = Annotated[bool, typer.Option("--from-rejected-class", help="The image's class was rejected as a whole.")]
_COLUMNS = [
    "file",
    "batch",
    "drop",
    "label",
    "label_raw",
    "state",
    "reasons",
    "sha256",
    "duplicate_of",
    "ruling",
    "now",
    "at",
    "thumbnail",
]


@app.command("list")
def list_(
    reason: Annotated[str | None, typer.Option(help="Only of this reason code.")] = None,
    label: Annotated[str | None, typer.Option(help="Only of this label.")] = None,
    drop: Annotated[str | None, typer.Option(help="Only of this drop or batch.")] = None,
    json_: Json = False,
) -> None:
    """Every refused file, with its reasons."""
    from cxr_ml.validation import quarantine

    with connect() as (store, settings):
        rows = quarantine.add_dates(
            store, quarantine.list_refused(store, settings.inbox, settings.classes, reason, label, drop)
        )
        if reason and rows.empty:
            known = sorted(
                {
                    code
                    for codes in quarantine.list_refused(store, settings.inbox, settings.classes)["reasons"]
                    for code in codes
                }
            )
            err.print(f"No such file was refused for {plain(reason)}. Reasons there are: {plain(', '.join(known))}")
        table = Table()
        table.add_column("SHA-256", no_wrap=True)
        table.add_column("judged", no_wrap=True)
        for title in ("drop", "file", "label", "what became of it", "reasons", "ruling"):
            table.add_column(title, overflow="fold")  # a name that is cut off cannot be asked about
        for row in rows[_COLUMNS].itertuples():
            ruled = f"{row.ruling}: in as {row.now}" if row.now else f"{row.ruling}: out" if row.ruling else ""
            label_shown = row.label or f"({row.label_raw})" if row.label_raw else ""
            said = (row.drop, row.file, label_shown, row.state, ", ".join(row.reasons), ruled)
            cells = (row.sha256[:12], row.at[:10], *said)
            table.add_row(*map(plain, cells))
        many = f"{len(rows)} files"
        show(rows[_COLUMNS].to_dict("records"), json_, *([table] if len(rows) else []), many)


@app.command("show")
def show_(name: Name, json_: Json = False) -> None:
    """All about one file: why it was refused, its measurements, files with the same picture, rulings."""
    from cxr_ml.validation import quarantine

    with connect() as (store, settings):
        found = quarantine.describe_file(store, settings, name)
        failed = set(found["reasons"])
        values: Mapping[str, Any] = found
        facts = Table(show_header=False, box=None, pad_edge=False)
        facts.add_column()
        facts.add_column(overflow="fold")
        prefix = f"s3://{settings.store.bucket}/{settings.store.prefix}"
        for key in ("file", "batch", "drop", "at", "label", "state", "now", "sha256"):
            facts.add_row(_TITLES.get(key, key), plain(values[key] or "–"))
        for key in ("image", "thumbnail"):
            facts.add_row(key, plain(prefix + values[key] if values[key] else "–"))
        why = [f"[bold]{plain(code)}[/]: {plain(words)}" for code, words in found["reasons"].items()]
        limits = Table("measure", "value", "limit", "", title="measured, beside images.json", title_justify="left")
        for line in values["limits"]:
            mark = "[red]refused" if line["reason"] in failed and not line["met"] else ""
            limits.add_row(plain(line["column"]), line["value"] or "not measured", line["limit"], mark)
        others = Table(title="the same picture", title_justify="left")
        for title in ("file", "batch", "label", "state", "thumbnail"):
            others.add_column(title, overflow="fold")
        for other in found["others"]:
            picture = prefix + other["thumbnail"] if other["thumbnail"] else "–"
            others.add_row(*(plain(other[k]) for k in ("file", "batch", "label", "state")), plain(picture))
        ruled = [plain(narrative.ruled(Ruling(**r))) for r in found["rulings"]]
        tables = [t for t in (limits, others) if t.row_count]
        show(found, json_, facts, *why, *tables, *ruled)


_OPTIONS = {
    "no_reason": "Say why with --why, and who with --by.",
    "rejected_class": "If this image is meant all the same, say so with --from-rejected-class.",
}
_SKIPPED = {
    "no_image": "have no image in the store",
    "already_in": "are in already",
    "no_single_label": "have no single label",
    "untrained_label": "are labelled with what is none of the model's classes",
    "withheld": "stay out for good",
    "rejected_class": "are of a class that was rejected as a whole (--from-rejected-class lets them in)",
}
_LATER = "The next dataset honours it: the weekly run takes it up, or `cxr-ml dataset`."
_TITLES = {"at": "judged at", "now": "next dataset", "sha256": "SHA-256"}


@app.command()
def release(name: Name, why: Why, by: By = None, from_rejected_class: Rejected = False, json_: Json = False) -> None:
    """Let a refused image into the next dataset, with the label that it came with."""
    _rule(name, "release", why, by, "", from_rejected_class, json_)


@app.command("release-all")
def release_all(
    reason: Annotated[str, typer.Option(help="Of this reason code.")],
    why: Why,
    label: Annotated[str | None, typer.Option(help="Only of this label.")] = None,
    drop: Annotated[str | None, typer.Option(help="Only of this drop or batch.")] = None,
    by: By = None,
    from_rejected_class: Rejected = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json_: Json = False,
) -> None:
    """Let all images that were refused for one reason into the next dataset, each by a ruling of its own."""
    from cxr_ml.dataset import versions
    from cxr_ml.validation import add_ruling

    with connect() as (store, settings), _naming_options():
        withheld = versions.load_withheld(store)
        rows, skipped = add_ruling.find_releasable(
            store, settings.inbox, settings.classes, withheld, reason, label, drop, from_rejected_class
        )
        counts = {str(k): int(n) for k, n in rows["label"].value_counts().sort_index().items()}
        skipped_words = {_SKIPPED[code]: n for code, n in skipped.items()}
        for words, n in skipped_words.items():
            err.print(f"{n} {plain(words)}", highlight=False)
        images = ", ".join(f"{n} {k}" for k, n in counts.items()) or "nothing"
        if len(rows) and not yes:
            typer.confirm(f"Release {images}, refused for {reason}?", abort=True, err=True)
        ruled = add_ruling.release_images(store, rows, _who(by), why) if len(rows) else []
        result = {"released": counts, "skipped": skipped_words, "rulings": [r.number for r in ruled]}
        show(result, json_, f"Released: {plain(images)}. {_LATER}" if ruled else "Nothing to release.")


@app.command()
def relabel(name: Name, label: str, why: Why, by: By = None, from_rejected_class: Rejected = False,
            json_: Json = False) -> None:  # fmt: skip
    """Give an image another label, and let it into the next dataset."""
    _rule(name, "relabel", why, by, label, from_rejected_class, json_)


@app.command()
def withdraw(name: Name, why: Why, by: By = None, json_: Json = False) -> None:
    """Take an image out of the next dataset: an accepted one, or one that was let in by mistake."""
    _rule(name, "withdraw", why, by, "", False, json_)


def _rule(name: str, action: str, why: str, by: str | None, label: str, rejected: bool, json_: bool) -> None:
    from cxr_ml.dataset import versions
    from cxr_ml.validation import add_ruling

    with connect() as (store, settings), _naming_options():
        request = add_ruling.Request(action, _who(by), why, label, rejected)
        outcome = add_ruling.rule_on_image(
            store, settings.inbox, settings.classes, versions.load_withheld(store), name, request
        )
        notes = [
            f"{other.file!r} of batch {other.batch} leaves: it shows the same picture under the label {other.label}."
            for other in outcome.leaving
        ]
        if outcome.previous_label:
            notes.insert(0, f"The image was in as {outcome.previous_label} until now.")
        show(outcome.ruling, json_, plain(narrative.ruled(outcome.ruling)), *map(plain, notes), _LATER)


def _who(by: str | None) -> str:
    return getpass.getuser() if by is None else by


@contextmanager
def _naming_options() -> Iterator[None]:
    """Adds to a refused ruling by which options of this command it can be had."""
    from cxr_ml.validation.rulings import RulingRefused

    try:
        yield
    except RulingRefused as error:
        raise Refused(f"{error} {_OPTIONS.get(error.code, '')}".rstrip()) from None
