"""`cxr-ml models`: what models there are, what became of them and why, and whether they still are what they were."""

import getpass
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from cxr_ml import layout
from cxr_ml.commands.shared import Json, connect, progress, show
from cxr_ml.records import Decision, Evaluation
from cxr_ml.reporting import formatting
from cxr_ml.reporting.terminal import candidates_table, decision_table, plain

app = typer.Typer(no_args_is_help=True, help="Ask about models, verify them, sweep the weights of old refused ones.")
Name = Annotated[str, typer.Argument(metavar="MODEL", help="A model, or a champion version such as v3.")]
_SHOWN = 20  # differences of one step that a person is shown; --json has all


@app.command("list")
def list_(json_: Json = False) -> None:
    """All models, newest first."""
    from cxr_ml.registry import queries

    with connect() as (store, _):
        rows = queries.models(store)
        table = Table(Column("model", no_wrap=True), "dataset", "outcome", "champion", "macro F1")
        recalls = list(dict.fromkeys(label for row in rows for label in row["recalls"] or ()))
        for label in recalls:
            table.add_column(f"recall {plain(label)}", overflow="fold")
        for row in rows:
            found = row["recalls"] or {}
            table.add_row(
                plain(row["model"]),
                str(row["dataset"]),
                _outcome(row),
                _versions(row),
                formatting.score(row["macro_f1"]),
                *(formatting.percent(found.get(label)) for label in recalls),
            )
        show(rows, json_, table if rows else "No model yet.")


def _outcome(row: Mapping[str, Any]) -> str:
    return row["outcome"].replace("_", " ") + (", weights swept" if row["swept"] else "")


def _versions(row: Mapping[str, Any]) -> str:
    return ", ".join(f"v{n}" for n in row["versions"]) + (" (now)" if row["champion"] else "")


@app.command("show")
def show_(model: Name, json_: Json = False) -> None:
    """One model: what it was made of, how it was judged, and what became of it."""
    from cxr_ml.registry import queries

    with connect() as (store, _):
        found = queries.show(store, model)
        record = found["model"]
        facts = Table(show_header=False, box=None, pad_edge=False)
        facts.add_column()
        facts.add_column(overflow="fold")
        facts.add_row("model", plain(record["model"]))
        facts.add_row("outcome", found["outcome"].replace("_", " "))
        facts.add_row("champion", _versions(found) or "never")
        if gone := found["swept"]:
            facts.add_row("weights", plain(f"swept at {gone['at']} by {gone['by']}: {gone['why']}"))
        for field in ("architecture", "dataset", "dataset_sha256", "artefact_sha256", "weights", "code"):
            facts.add_row(field.replace("_sha256", " SHA-256"), plain(record[field]))
        for field in ("settings", "epochs", "seconds", "hardware"):
            facts.add_row(field, plain(", ".join(f"{k} {v}" for k, v in record[field].items())))
        if point := record["operating_point"]:
            offsets = ", ".join(f"{label} +{offset}" for label, offset in point["offsets"].items() if offset)
            told = (
                f"temperature {point['temperature']}; added to the logarithm of a probability: {offsets or 'nothing'}"
            )
            facts.add_row("operating point", plain(f"{told}; fitted on {point['images']} validation images"))
        tables = [candidates_table([Evaluation(**found["evaluation"])])] if found["evaluation"] else []
        tables += [decision_table(Decision(**found["decision"]))] if found["decision"] else []
        show(found, json_, facts, *tables, *([_entries(found["entries"])] if found["entries"] else []))


@app.command()
def compare(first: Name, second: Name, json_: Json = False) -> None:
    """Two models beside each other: figures on the same test images, and settings that differ."""
    from cxr_ml.registry import queries

    with connect() as (store, _):
        found = queries.compare(store, first, second)
        names = [plain(name) for name in found["models"]]
        one, two = found["datasets"]
        said = (
            f"Both were evaluated on the test images of dataset {one}."
            if found["same_images"]
            else f"[bold red]Not the same test images[/]: the first was evaluated on dataset {one}, the second on "
            f"dataset {two}. The differences say nothing about which is better."
        )
        figures = Table("on the test images", *names, "difference")
        for row in found["figures"]:
            values = [formatting.observed(v) for v in row["values"]]
            change = "–" if row["difference"] is None else f"{row['difference']:+.4f}"
            figures.add_row(plain(row["name"]), *values, change)
        differing = Table("setting", *names)
        for setting in found["settings"]:
            differing.add_row(plain(setting["name"]), *(plain("–" if v is None else v) for v in setting["values"]))
        show(found, json_, said, figures, differing if found["settings"] else "No setting differs.")


@app.command()
def history(json_: Json = False) -> None:
    """What was promoted, refused, rolled back and swept, by whom, when and why; oldest first."""
    from cxr_ml.registry import promotion

    with connect() as (store, _):
        entries = [e.model_dump(mode="json", exclude={"decision"}) for e in promotion.history(store)]
        show(entries, json_, _entries(entries) if entries else "Nothing has happened yet.")


def _entries(entries: list[dict[str, Any]]) -> Table:
    table = Table("", "when", "what", Column("model", no_wrap=True), "by", Column("why", overflow="fold"))
    for e in entries:
        when = f"{datetime.fromisoformat(e['at']):%Y-%m-%d %H:%M}"
        what = e["action"].replace("_", " ") + ("" if e["version"] is None else f" v{e['version']}")
        table.add_row(str(e["number"]), when, what, *(plain(e[key]) for key in ("model", "by", "why")))
    return table


@app.command()
def verify(model: Name, json_: Json = False) -> None:
    """Check every hash from the champion's pointer to the pixels. Exit status 1 if anything differs."""
    from cxr_ml.registry.verify import verify_model

    with connect() as (store, _):
        with progress("images", json_) as on_image:
            steps = verify_model(store, model, on_image)
        texts = []
        for step in steps:
            mark = "[bold red]DIFFERS[/]" if step.differs else "[green]ok[/]"
            texts.append(f"{mark}  {plain(step.name)}" + ("" if step.differs else f": {plain(step.said)}"))
            texts += [f"    {plain(what)}" for what in step.differs[:_SHOWN]]
            if more := len(step.differs) - _SHOWN:
                texts += [f"    and {more} more; --json names them"] if more > 0 else []
        show([s._asdict() | {"differs": list(s.differs)} for s in steps], json_, *texts)
    if any(step.differs for step in steps):
        raise typer.Exit(1)


@app.command()
def prune(
    keep: Annotated[int, typer.Option(min=0, help="So many refused candidates, the last judged, keep their weights.")],
    yes: Annotated[
        bool, typer.Option("--yes", help="Delete; without it, only what would be deleted is shown.")
    ] = False,
    json_: Json = False,
) -> None:
    """Delete the weights of old refused candidates. Everything else of them stays, and every champion."""
    from cxr_ml.registry.prune import candidates, delete_weights

    with connect() as (store, _):
        names = candidates(store, keep)
        for name in names if yes else ():
            delete_weights(store, name, getpass.getuser(), f"Beyond the {keep} refused candidates judged last.")
        said = "Weights deleted" if yes else "Would be deleted, with --yes"
        texts = [f"{said}: {plain(layout.model_weights(name))}" for name in names]
        show({"models": names, "deleted": yes}, json_, *(texts or ["Nothing to delete."]))
