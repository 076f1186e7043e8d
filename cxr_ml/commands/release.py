"""`cxr-ml gate`, `promote`, `rollback` and `report`: what becomes of candidates."""

import getpass
from collections.abc import Sequence
from typing import Annotated

import typer

from cxr_ml.commands.shared import Json, connect, err, show
from cxr_ml.errors import Refused
from cxr_ml.reporting.terminal import decision_table
from cxr_ml.settings import Settings
from cxr_ml.store import ObjectStore


def _to_key(name: str, param: typer.CallbackParam) -> str:
    """Returns the name as it is used in keys, as for Airflow's runs; refuses one of which nothing would be left."""
    from cxr_ml.registry import promotion

    if name == param.default:
        return name
    if not any(c.isascii() and c.isalnum() for c in name):
        raise typer.BadParameter(f"A name with letters or digits was expected. Received: {name!r}")
    return promotion.slug(name)


RunName = Annotated[
    str, typer.Option("--run", help="Name of the run that decision and report belong to.", callback=_to_key)
]


def gate(model: list[str], run: RunName, json_: Json = False) -> None:
    """Let the gate decide on evaluated candidates. A shut gate is a result, not an error."""
    from cxr_ml import pipeline

    with connect() as (store, settings):
        decision = pipeline.decide(store, settings.gate, settings.classes, run, model, by=getpass.getuser())
        show(decision, json_, decision_table(decision))


def promote(run: RunName, json_: Json = False) -> None:
    """Carry out the gate's decision of a run: promote, or record the refusal. Airflow's asset is not updated."""
    from cxr_ml.registry import promotion

    with connect() as (store, _):
        entry = promotion.apply_decision(store, promotion.load_decision(store, run), by=getpass.getuser())
        show(entry, json_, f"{entry.action}: {entry.model}" + (f", champion v{entry.version}" if entry.version else ""))


def rollback(
    why: Annotated[str, typer.Option(help="The reason, for the history.")],
    to: Annotated[str | None, typer.Option(help="An earlier champion, or version; default: the last.")] = None,
    json_: Json = False,
) -> None:
    """Make an earlier champion champion again. Airflow's asset is not updated: the DAG's rollback does that."""
    from cxr_ml.registry import mlflow_sync, promotion

    with connect() as (store, _):
        entry = promotion.rollback(store, to, by=getpass.getuser(), why=why)
        show(entry, json_, f"{entry.model} is champion again, v{entry.version}.")
        mlflow_sync.mirror(store)


def report(
    run: RunName,
    batch: Annotated[list[str] | None, typer.Argument()] = None,
    to: Annotated[list[str] | None, typer.Option(help="Recipients, from mail.allowed; none: no mail.")] = None,
    json_: Json = False,
) -> None:
    """Write the report of a concluded run, and mail it."""
    from cxr_ml.reporting import messages, publish

    with connect() as (store, settings):
        messages.allowed(tuple(to or ()), settings.mail)
        published = publish.publish_report(store, settings, run, batch or ())
        status = mail_report(store, settings, run, to or (), f"cxr-ml report {' '.join(batch or ())} --run {run}")
        if status:
            raise typer.Exit(status)
        show(published.run, json_, f"s3://{settings.store.bucket}/{settings.store.prefix}{published.key}")


def mail_report(store: ObjectStore, settings: Settings, run: str, recipients: Sequence[str], again: str = "") -> int:
    """Mails a report that is written; says on standard error who has no mail and how to send it again.

    Args:
        store: the object store.
        settings: the mail server.
        run: name of the run.
        recipients: addresses from `mail.allowed`.
        again: the command that sends the mail again, without its recipients; "" where there is none.

    Returns:
        Exit status: 0 everybody has the mail, 2 trying again cannot help, 3 it may.
    """
    from cxr_ml.reporting import deliveries, notify, smtp

    try:
        notify.mail_outcome(store, settings, run, recipients)
    except (OSError, Refused) as error:
        waiting = list(dict.fromkeys(a for mail in deliveries.find_unsent(store, run) for a in mail.to))
        err.print(
            f"The report is written, but the mail was not sent to {', '.join(waiting) or 'everyone'}: "
            f"{smtp.describe_error(error)}",
            style="bold red",
            markup=False,
        )
        if again:
            to = " ".join(f"--to {address}" for address in recipients)
            err.print(f"Send it again, to those who do not have it, with: {again} {to}", markup=False)
        return 2 if isinstance(error, Refused) else 3
    return 0
