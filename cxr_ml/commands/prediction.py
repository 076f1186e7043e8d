"""`cxr-ml predict`: the champion or another model on image files."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from cxr_ml.commands.shared import Json, connect, show
from cxr_ml.reporting.terminal import plain


def predict(
    files: list[Path],
    model: Annotated[str | None, typer.Option(help="A model or a version; default: the champion.")] = None,
    explain: Annotated[Path | None, typer.Option(help="A folder for pictures of where it looked.")] = None,
    json_: Json = False,
) -> None:
    """Probabilities of X-ray files. Not a diagnosis."""
    from cxr_ml.serving.predict import load_predictor

    with connect() as (store, settings):
        rows = list(load_predictor(store, settings, model)(files, explain))
        table = Table(Column("file", overflow="fold"), "predicted", *settings.classes, "refused")
        for row in rows:
            shown = (f"{row.probabilities[c]:.3f}" if row.probabilities else "" for c in settings.classes)
            table.add_row(plain(row.file), row.predicted or "", *shown, " ".join(row.refused))
        answered = [row for row in rows if row.probabilities]
        moved = sum(row.predicted != _likeliest(row.probabilities) for row in answered if row.probabilities)
        note = (
            f"{moved} of {len(answered)} are decided for another class than the likeliest: the model's operating point "
            "would rather have a false alarm than a missed illness (`cxr-ml models show`)."
        )
        show([row.model_dump(mode="json") for row in rows], json_, table, *([note] if moved else []))


def _likeliest(probabilities: dict[str, float]) -> str:
    return max(probabilities, key=lambda label: probabilities[label])
