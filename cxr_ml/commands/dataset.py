"""`cxr-ml dataset`: builds the next version, and tells about all of them."""

from typing import Annotated

import typer
from rich.table import Table

from cxr_ml.commands.shared import Json, connect, err, show
from cxr_ml.errors import Refused
from cxr_ml.records import Dataset
from cxr_ml.reporting.terminal import dataset_remarks, plain

app = typer.Typer(invoke_without_command=True)


@app.callback()
def dataset(context: typer.Context, json_: Json = False) -> None:
    """Build the next dataset version from all validated batches and rulings; with a command: ask about versions."""
    from cxr_ml.dataset import build
    from cxr_ml.registry import promotion

    if context.invoked_subcommand:
        return
    with connect() as (store, settings):
        record, new = build.build_dataset(store, settings, promotion.trained_on(store))
        show(
            record, json_, _counts(record, settings.classes, "" if new else " (nothing new)"), *dataset_remarks(record)
        )


@app.command("list")
def list_(json_: Json = False) -> None:
    """All dataset versions."""
    from cxr_ml.dataset import versions

    with connect() as (store, _):
        records = [versions.load_dataset(store, n) for n in versions.list_numbers(store)]
        table = Table("dataset", "parent", "batches", "rulings", "train", "validation", "test", "manifest SHA-256")
        for r in records:
            sums = (str(sum(r.counts.get(s, {}).values())) for s in ("train", "validation", "test"))
            parent = "–" if r.parent is None else str(r.parent)
            table.add_row(
                str(r.dataset), parent, str(len(r.batches)), str(r.rulings), *sums, r.manifest_sha256[:16]
            )  # fmt: skip
        texts = [table] if records else ["No dataset yet."]
        show([r.model_dump(mode="json") for r in records], json_, *texts)


@app.command("show")
def show_(number: int, json_: Json = False) -> None:
    """One version: its images, where they come from, and what probes without lungs make of them."""
    from cxr_ml.dataset import versions

    with connect() as (store, settings):
        record = versions.load_dataset(store, number)
        facts = Table(show_header=False, box=None, pad_edge=False)
        facts.add_row("parent", "none, the first" if record.parent is None else str(record.parent))
        facts.add_row("batches", plain(", ".join(record.batches)))
        facts.add_row("rulings honoured", str(record.rulings))
        if record.withheld:
            facts.add_row(
                "withheld", f"{len(record.withheld)} images, whose group turned out to reach into a test split"
            )
        facts.add_row("manifest SHA-256", record.manifest_sha256)
        show(record, json_, _counts(record, settings.classes, ""), facts, *dataset_remarks(record))


@app.command()
def diff(before: int, after: int, json_: Json = False) -> None:
    """What two versions do not hold alike; with --json, image by image."""
    from cxr_ml.dataset.diff import CHANGES, compare_datasets

    with connect() as (store, _):
        rows = compare_datasets(store, before, after)
        table = Table("change", "class", "was", "split", "batch", "images")
        keys = ["change", "label", "label_before", "split", "batch"]
        for (change, label, was, split, batch), n in rows.groupby(keys, sort=False).size().items():
            shown = was if change == "relabelled" else ""
            table.add_row(change, plain(label), plain(shown), split, plain(batch), str(n))
        sums = ", ".join(f"{int((rows['change'] == c).sum())} {c}" for c in CHANGES)
        value = {c: rows[rows["change"] == c].drop(columns="change").to_dict("records") for c in CHANGES}
        show(value, json_, *([table] if len(rows) else []), f"dataset {before} → {after}: {sums}")


@app.command()
def doubts(
    number: Annotated[int | None, typer.Argument(help="Dataset version; default: the newest.")] = None,
    top: Annotated[int, typer.Option(min=1, help="So many at most.")] = 50,
    json_: Json = False,
) -> None:
    """Images whose label the champion contradicts most, for a human to look at. Changes nothing."""
    from cxr_ml.dataset import versions
    from cxr_ml.evaluation import label_issues
    from cxr_ml.registry import promotion

    with connect() as (store, settings):
        record = versions.load_dataset(store, number) if number is not None else versions.load_latest(store)
        champion = promotion.champion(store)
        if record is None or champion is None:
            raise Refused("Doubts need a dataset and a champion. Received: none yet. Retrain first.")
        with err.status("predicting"):
            found = label_issues.find(store, settings.cache_dir, record, champion.model, top)
        table = Table("SHA-256", "file", "label", "champion says", "p(label)", "p(says)", "split", "issue")
        for d in found.doubts:
            table.add_row(
                d.sha256[:12], plain(f"{d.batch}/{d.file}"), d.label, d.suggested, f"{d.probability:.3f}",
                f"{d.suggested_probability:.3f}", d.split, "yes" if d.issue else "",
            )  # fmt: skip
        show(found, json_, *([table] if found.doubts else []), plain(found.said))


def _counts(record: Dataset, classes: tuple[str, ...], note: str) -> Table:
    table = Table("split", *classes, title=f"dataset {record.dataset}{note}")
    for split, counts in record.counts.items():
        table.add_row(split, *(str(counts.get(label, 0)) for label in classes))
    return table
