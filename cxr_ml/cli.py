"""`cxr-ml`: each stage of the retraining as a command, without Airflow."""

import getpass
import sys
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from cxr_ml.commands import dataset as dataset_commands
from cxr_ml.commands import models as model_commands
from cxr_ml.commands import quarantine as quarantine_commands
from cxr_ml.commands.shared import Json, err, following, opened, out, progress, show
from cxr_ml.errors import Refused
from cxr_ml.records import Evaluation, Model
from cxr_ml.reporting.terminal import candidates_table, decision_table, plain, show_batch, show_run
from cxr_ml.settings import Settings

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)
app.add_typer(dataset_commands.app, name="dataset")
app.add_typer(model_commands.app, name="models")
app.add_typer(quarantine_commands.app, name="quarantine")


def _run_name(given: str, param: typer.CallbackParam) -> str:
    """The name as it is used in keys, as Airflow's runs have it; refused where nothing of it can stay."""
    from cxr_ml.registry import promotion

    if given == param.default:
        return given
    if not any(c.isascii() and c.isalnum() for c in given):
        raise typer.BadParameter(f"A name with letters or digits was expected. Received: {given!r}")
    return promotion.slug(given)


RunName = Annotated[
    str, typer.Option("--run", help="Name of the run that decision and report belong to.", callback=_run_name)
]


@app.command()
def ingest(drop: Annotated[list[str] | None, typer.Argument(help="Drops; default: all new ones.")] = None,
           json_: Json = False) -> None:  # fmt: skip
    """Copy drops from the inbox into the store and measure each image."""
    from cxr_ml import store

    with opened() as settings:
        store.check(settings)
        batches, left_out = _ingest(settings, drop or [], json_)
        show({"batches": batches}, json_, "\n".join(map(plain, batches)) or "Nothing new in the inbox.")
        _refuse(left_out)


def _ingest(settings: Settings, named: list[str], json_: bool) -> tuple[list[str], list[str]]:
    """Batches of the drops that are named, or of all new ones; and of these the drops that were refused."""
    from cxr_ml.ingest import ingest_drop, labels
    from cxr_ml.validation.suite_check import check_suites

    check = partial(check_suites, settings)
    names, batches, left_out = named or labels.new(settings), [], []
    if names and not named:
        check()  # no drop is at fault for a suite
    for name in names:
        try:
            with progress(name, json_) as on_file:
                batches.append(ingest_drop.ingest(settings, name, on_file, begin=check if named else None))
        except Refused as error:
            if named:
                raise
            err.print(f"[bold red]Refused:[/] {plain(name)}: {plain(error)}", highlight=False)
            left_out.append(name)
    return batches, left_out


def _refuse(left_out: list[str]) -> None:
    if left_out:
        raise Refused(f"All else is done. Left out, see above: {', '.join(left_out)}.")


@app.command()
def measure(paths: Annotated[list[Path], typer.Argument(help="Image files, and folders of them.")],
            out_: Annotated[Path | None, typer.Option("--out", help="A .parquet or .csv file to write.")] = None,
            json_: Json = False) -> None:  # fmt: skip
    """Measure image files of any folder, as `ingest` does with a drop. Needs no store."""
    from cxr_ml.ingest import measure_folder

    with opened() as settings:
        listed = measure_folder.listing(paths)
        with progress("measuring", json_) as on_file:
            tables = measure_folder.tables(settings, listed, lambda done: on_file(done, len(listed)))
            if out_:
                unread = measure_folder.write(tables, out_)
            else:
                rows = [row for frame in tables for row in frame.to_dict("records")]
        if out_:
            found = {"files": len(listed), "unread": unread, "out": str(out_)}
            reasons = ", ".join(f"{n} {code}" for code, n in unread.items()) or "none"
            show(found, json_, f"{len(listed)} files in {plain(out_)}; not measured: {reasons}")
            return
        table = Table("file", "size", "mean", "sharpness", "white box", "saturation")
        table.add_column("reasons", overflow="fold")
        for row in rows if not json_ else ():
            values = (f"{row[n]:.3g}" for n in ("mean", "sharpness", "white_box", "saturation"))
            shown = ("",) * 5 if row["reasons"] else (f"{row['width']}×{row['height']}", *values)
            table.add_row(plain(row["file"]), *shown, " ".join(row["reasons"]))
        show(rows, json_, table)


@app.command()
def validate(batch: list[str], json_: Json = False) -> None:
    """Judge ingested batches with Great Expectations and commit them."""
    from cxr_ml.validation import judge_batch

    with opened() as settings:
        with following(json_) as on_progress:
            records = [judge_batch.judge(settings, name, on_progress) for name in batch]
        if json_:
            show([r.model_dump(mode="json") for r in records], True)
            return
        for record in records:
            show_batch(record, out)


@app.command()
def train(
    dataset: int, architecture: Annotated[list[str] | None, typer.Argument()] = None, json_: Json = False
) -> None:
    """Train candidates on a dataset version; default: the architectures of the settings."""
    from cxr_ml.registry import promotion

    with opened() as settings:
        chosen = architecture or list(settings.architectures)
        champion = promotion.champion(settings)
        warm = champion.model if champion else None
        models = [_train(settings, dataset, name, warm, json_) for name in chosen]
        show([m.model_dump(mode="json") for m in models], json_, "\n".join(m.model for m in models))


@app.command()
def evaluate(model: list[str], json_: Json = False) -> None:
    """Evaluate candidates of one dataset, and the champion on the same images."""
    from cxr_ml.registry import promotion

    with opened() as settings:
        numbers = {promotion.load_model_record(settings, name).dataset for name in model}
        if len(numbers) != 1:
            raise Refused(f"Candidates must come from one dataset version. Received: {sorted(numbers)}")
        champion = promotion.champion(settings)
        found = _evaluate(settings, numbers.pop(), model, champion.model if champion else None, json_)
        show([e.model_dump(mode="json") for e in found], json_, candidates_table(found))


@app.command()
def gate(model: list[str], run: RunName, json_: Json = False) -> None:
    """Let the gate decide on evaluated candidates. A shut gate is a result, not an error."""
    from cxr_ml import pipeline

    with opened() as settings:
        decision = pipeline.decide(settings, run, model, by=getpass.getuser())
        show(decision, json_, decision_table(decision))


@app.command()
def promote(run: RunName, json_: Json = False) -> None:
    """Carry out the gate's decision of a run: promote, or record the refusal. Airflow's asset is not updated."""
    from cxr_ml.registry import promotion

    with opened() as settings:
        entry = promotion.conclude(settings, promotion.load_decision(settings, run), by=getpass.getuser())
        show(entry, json_, f"{entry.action}: {entry.model}" + (f", champion v{entry.version}" if entry.version else ""))


@app.command()
def rollback(why: Annotated[str, typer.Option(help="The reason, for the history.")],
             to: Annotated[str | None, typer.Option(help="An earlier champion, or version; default: the last.")] = None,
             json_: Json = False) -> None:  # fmt: skip
    """Make an earlier champion champion again. Airflow's asset is not updated: the DAG's rollback does that."""
    from cxr_ml.registry import mlflow_sync, promotion

    with opened() as settings:
        entry = promotion.rollback(settings, to, by=getpass.getuser(), why=why)
        show(entry, json_, f"{entry.model} is champion again, v{entry.version}.")
        mlflow_sync.mirror(settings)


@app.command()
def report(run: RunName, batch: Annotated[list[str] | None, typer.Argument()] = None,
           to: Annotated[list[str] | None, typer.Option(help="Recipients, from mail_allowed; none: no mail.")] = None,
           json_: Json = False) -> None:  # fmt: skip
    """Write the report of a concluded run, and mail it."""
    from cxr_ml.reporting import messages, notify, publish

    with opened() as settings:
        messages.allowed(tuple(to or ()), settings)
        record, key = publish.publish_report(settings, run, batch or ())
        notify.mail_outcome(settings, run, to or ())
        show(record, json_, f"s3://{settings.bucket}/{settings.prefix}{key}")


@app.command()
def predict(files: list[Path],
            model: Annotated[str | None, typer.Option(help="A model or a version; default: the champion.")] = None,
            explain: Annotated[Path | None, typer.Option(help="A folder for pictures of where it looked.")] = None,
            json_: Json = False) -> None:  # fmt: skip
    """Probabilities of X-ray files. Not a diagnosis."""
    from cxr_ml.serving.predict import load_predictor

    with opened() as settings:
        rows = list(load_predictor(settings, model)(files, explain))
        if any(row.predicted and row.unlikeness is None for row in rows):
            err.print(
                "This model is of a version that did not learn what its training images are like: a picture that is no "
                "chest X-ray is not recognised. Train a new one.", style="bold red", highlight=False
            )  # fmt: skip
        table = Table(Column("file", overflow="fold"), "predicted", *settings.classes, "refused")
        for row in rows:
            shown = (f"{row.probabilities[c]:.3f}" if row.probabilities else "" for c in settings.classes)
            table.add_row(plain(row.file), row.predicted or "", *shown, " ".join(row.refused))
        answered = [row for row in rows if row.predicted]
        moved = sum(row.predicted != max(row.probabilities, key=row.probabilities.get) for row in answered)
        note = (
            f"{moved} of {len(answered)} are decided for another class than the likeliest: the model's operating point "
            "would rather have a false alarm than a missed illness (`cxr-ml models show`)."
        )
        show([row.model_dump(mode="json") for row in rows], json_, table, *([note] if moved else []))


@app.command()
def retrain(run: RunName = "", json_: Json = False) -> None:
    """All stages, one after the other, as Airflow does them."""
    from cxr_ml import store
    from cxr_ml.registry import promotion

    with opened() as settings:
        store.check(settings)
        run = promotion.slug(run or f"cli-{datetime.now(UTC).isoformat(timespec='seconds')}")
        names, left_out = _ingest(settings, [], json_)
        _retrain(settings, run, names, left_out, json_)
        _refuse(left_out)


def _train(settings: Settings, number: int, architecture: str, champion: str | None, json_: bool) -> Model:
    from cxr_ml.training.train import train_model  # it loads a deep-learning framework

    # On a terminal, a bar of its own shows each epoch.
    with following(json_ or sys.stdout.isatty()) as on_progress:
        return train_model(settings, number, architecture, not json_, champion, on_progress)


def _evaluate(
    settings: Settings, number: int, models: list[str], champion: str | None, json_: bool
) -> list[Evaluation]:
    from cxr_ml.evaluation.evaluate import evaluate_models

    with following(json_) as on_progress:
        return evaluate_models(settings, number, models, champion, on_progress)


def _retrain(settings: Settings, run: str, names: list[str], left_out: list[str], json_: bool) -> None:
    from cxr_ml import pipeline
    from cxr_ml.dataset import versions
    from cxr_ml.registry import promotion
    from cxr_ml.reporting import publish
    from cxr_ml.validation import judge_batch

    with following(json_) as on_progress:
        for name in names:
            judge_batch.judge(settings, name, on_progress)
    # A dataset that no run brought before the gate, because that run died, is taken up.
    changed = names or versions.pending(settings)
    against = promotion.trained_on(settings)
    built, new = versions.build(settings, against) if changed else (versions.latest(settings), False)
    if built is None or (not new and promotion.decided(settings, built.dataset)):
        publish.publish_nothing_new(settings, run, names, left_out=left_out)
        _mail(settings, run)
        show({"outcome": "nothing_new"}, json_, "Nothing new in the inbox; nothing was trained.")
        return

    champion = promotion.champion(settings)
    beside = champion.model if champion else None
    models = [_train(settings, built.dataset, a, beside, json_).model for a in settings.architectures]
    # In a process of its own, as in Airflow: what the gate judges is the stored file, loaded afresh.
    with ProcessPoolExecutor(1, get_context("spawn")) as other:
        other.submit(_evaluate, settings, built.dataset, models, beside, json_).result()
    by = getpass.getuser()
    decision = pipeline.decide(settings, run, models, by=by)
    if settings.approval and decision.promote:
        then = f"`cxr-ml promote --run {run}`, and then `cxr-ml report --run {run}`"
        show(
            decision,
            json_,
            decision_table(decision),
            f"The settings ask for approval, which is yours to give: {then}.",
        )
        return
    promotion.conclude(settings, decision, by=by)
    record, key = publish.publish_report(settings, run, names, left_out=left_out)
    _mail(settings, run)
    if json_:
        show(record, True, "")
        return
    show_run(record, out)
    out.print(f"report: s3://{settings.bucket}/{settings.prefix}{key}", highlight=False)


def _mail(settings: Settings, run: str) -> None:
    from cxr_ml.reporting import notify

    try:
        notify.mail_outcome(settings, run, settings.mail_to)
    except (OSError, Refused) as error:  # what it tells of is done, and must not be done again
        err.print(f"The report is written, but not everybody has the mail: {error}", style="bold red", markup=False)


@app.command("demo-data")
def demo_data(folder: Path, seed: int = 0, images_per_class: int = 300,
              shuffle_labels: Annotated[bool, typer.Option(help="A spoiled drop: labels at random.")] = False,
              json_: Json = False) -> None:  # fmt: skip
    """Write a demonstration drop of synthetic chest phantoms."""
    from cxr_ml.imaging import synthetic

    with opened():
        counts = synthetic.write_drop(folder, seed, images_per_class, shuffle_labels)
        show(counts, json_, f"{sum(counts.values())} files in {plain(folder)}")
