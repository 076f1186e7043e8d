"""What all commands share: settings with errors for people, and results for people or machines."""

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from cxr_ml import settings as settings_module
from cxr_ml.errors import Refused
from cxr_ml.progress import OnProgress, nobody
from cxr_ml.records import Record
from cxr_ml.reporting import follow, formatting
from cxr_ml.reporting.terminal import plain
from cxr_ml.settings import Settings
from cxr_ml.store import ObjectStore

out = Console()
err = Console(stderr=True)
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]


@contextmanager
def connect() -> Iterator[tuple[ObjectStore, Settings]]:
    """Yields store and settings for one command; what is refused ends it with the reason and exit status 2."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        settings = settings_module.load()
        yield ObjectStore(settings.store), settings
    except Refused as error:
        err.print(f"[bold red]Refused:[/] {plain(error)}", highlight=False)
        raise typer.Exit(2) from None
    except (BotoCoreError, ClientError, ConnectionError) as error:
        err.print(f"[bold red]Not reachable:[/] {plain(error)}", highlight=False)
        raise typer.Exit(3) from None


def show(value: Record | Mapping[str, Any] | Sequence[Any], as_json: bool, *texts: str | Table) -> None:
    """Prints a result: as strict JSON, or as the texts and tables for people."""
    if as_json:
        print(json.dumps(_strict(value.model_dump(mode="json") if isinstance(value, Record) else value), indent=2))
        return
    for text in texts:
        out.print(text, highlight=False)


def _strict(value: Any) -> Any:  # noqa: ANN401 - JSON
    # JSON knows no NaN: what could not be evaluated, such as the precision of a class never predicted, is null.
    if isinstance(value, dict):
        return {k: _strict(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_strict(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def following(json_: bool) -> Iterator[OnProgress]:
    """A callback for a step: how far it has come stands on a terminal's last line, else in a line now and then."""
    if json_:
        yield nobody
    elif err.is_terminal:
        with err.status("at work") as status:
            yield lambda told: status.update(plain(formatting.progress(told)))
    else:
        with follow.followed(nobody, lambda line: print(line, file=sys.stderr, flush=True)) as on_progress:
            yield on_progress


@contextmanager
def progress(what: str, json_: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error, and the function that moves it: (done, total)."""
    with Progress(console=err, disable=json_) as bar:
        task = bar.add_task(plain(what), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
