"""`cxr-ml settings`: each setting, its value and where it comes from."""

from typing import Any

import typer
from pydantic_core import to_jsonable_python
from rich.table import Column, Table

from cxr_ml import settings as settings_module
from cxr_ml.commands.shared import Json, err, show
from cxr_ml.errors import Refused
from cxr_ml.reporting.terminal import plain


def settings(json_: Json = False) -> None:
    """Show each setting with its value and the file, variable or default that it comes from."""
    try:
        rows = settings_module.explain()
    except Refused as error:
        err.print(f"[bold red]Refused:[/] {plain(error)}", highlight=False)
        raise typer.Exit(2) from None
    table = Table("setting", Column("value", overflow="fold"), Column("from", overflow="fold"))
    for row in rows:
        style = "dim" if row.source == "default" else None
        table.add_row(row.name, plain(_to_text(row.value)), plain(row.source), style=style)
    show([{"name": r.name, "value": to_jsonable_python(r.value), "source": r.source} for r in rows], json_, table)


def _to_text(value: Any) -> str:  # noqa: ANN401 - of as many types as there are settings
    if isinstance(value, tuple):
        return ", ".join(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return "" if value is None else str(value)
