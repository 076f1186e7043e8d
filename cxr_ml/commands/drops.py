"""`cxr-ml ingest`, `measure`, `validate` and `demo-data`: image files before they are in a dataset."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cxr_ml.commands.shared import Json, connect, err, following, out, progress, show
from cxr_ml.errors import Refused
from cxr_ml.reporting.terminal import plain, show_batch
from cxr_ml.settings import Settings
from cxr_ml.store import ObjectStore


def ingest(
    drop: Annotated[list[str] | None, typer.Argument(help="Drops; default: all new ones.")] = None, json_: Json = False
) -> None:
    """Copy drops from the inbox into the store and measure each image."""
    with connect() as (store, settings):
        store.check()
        batches, left_out = ingest_drops(store, settings, drop or [], json_)
        show({"batches": batches}, json_, "\n".join(map(plain, batches)) or "Nothing new in the inbox.")
        refuse_left_out(left_out)


def ingest_drops(store: ObjectStore, settings: Settings, named: list[str], json_: bool) -> tuple[list[str], list[str]]:
    """Ingests the drops that are named, or all new ones; returns their batches, and new drops that were refused."""
    from cxr_ml.ingest import inbox, ingest_drop
    from cxr_ml.validation.suite_check import check_suites

    check = partial(check_suites, settings.validation, settings.cache_dir)
    names, batches, left_out = named or inbox.list_new_drops(store, settings.inbox), [], []
    if names and not named:
        check()  # no drop is at fault for a suite
    for name in names:
        try:
            with progress(name, json_) as on_file:
                batches.append(ingest_drop.ingest(store, settings, name, on_file, on_start=check if named else None))
        except Refused as error:
            if named:
                raise
            err.print(f"[bold red]Refused:[/] {plain(name)}: {plain(error)}", highlight=False)
            left_out.append(name)
    return batches, left_out


def refuse_left_out(left_out: list[str]) -> None:
    """Raises Refused if drops were left out, after all else is done."""
    if left_out:
        raise Refused(f"All else is done. Left out, see above: {', '.join(left_out)}.")


def measure(
    paths: Annotated[list[Path], typer.Argument(help="Image files, and folders of them.")],
    out_: Annotated[Path | None, typer.Option("--out", help="A .parquet or .csv file to write.")] = None,
    json_: Json = False,
) -> None:
    """Measure image files of any folder, as `ingest` does with a drop. Needs no store."""
    from cxr_ml.ingest import measure_folder

    with connect() as (store, settings):
        listed = measure_folder.list_images(paths)
        with progress("measuring", json_) as on_file:
            tables = measure_folder.measure_files(store, settings, listed, lambda done: on_file(done, len(listed)))
            if out_:
                unread = measure_folder.write_table(tables, out_)
            else:
                rows = [row for frame in tables for row in frame.to_dict("records")]
        if out_:
            summary = {"files": len(listed), "unread": unread, "out": str(out_)}
            reasons = ", ".join(f"{n} {code}" for code, n in unread.items()) or "none"
            show(summary, json_, f"{len(listed)} files in {plain(out_)}; not measured: {reasons}")
            return
        table = Table("file", "size", "mean", "sharpness", "white box", "saturation")
        table.add_column("reasons", overflow="fold")
        for row in rows if not json_ else ():
            values = (f"{row[n]:.3g}" for n in ("mean", "sharpness", "white_box", "saturation"))
            shown = ("",) * 5 if row["reasons"] else (f"{row['width']}×{row['height']}", *values)
            table.add_row(plain(row["file"]), *shown, " ".join(row["reasons"]))
        show(rows, json_, table)


def validate(batch: list[str], json_: Json = False) -> None:
    """Judge ingested batches with Great Expectations and commit them."""
    from cxr_ml.validation import judge_batch

    with connect() as (store, settings):
        with following(json_) as on_progress:
            records = [judge_batch.validate_batch(store, settings, name, on_progress) for name in batch]
        if json_:
            show([r.model_dump(mode="json") for r in records], True)
            return
        for record in records:
            show_batch(record, out)


def demo_data(
    folder: Path,
    seed: int = 0,
    images_per_class: int = 300,
    shuffle_labels: Annotated[bool, typer.Option(help="A spoiled drop: labels at random.")] = False,
    json_: Json = False,
) -> None:
    """Write a demonstration drop of synthetic chest phantoms."""
    from cxr_ml.imaging import synthetic

    with connect():
        counts = synthetic.write_drop(folder, seed, images_per_class, shuffle_labels)
        show(counts, json_, f"{sum(counts.values())} files in {plain(folder)}")
