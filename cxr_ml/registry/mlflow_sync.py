"""Mirrors models into MLflow, where MLFLOW_TRACKING_URI names a server. The store stays what counts."""

import csv
import io
import logging
import os
from collections.abc import Sequence
from datetime import datetime
from math import isfinite
from typing import Any

from cxr_ml import layout
from cxr_ml.errors import Refused
from cxr_ml.records import Champion, HistoryEntry, Model
from cxr_ml.registry import promotion, queries
from cxr_ml.store import ObjectStore

NAME = "cxr"  # of the experiment and of the registered model
ALIAS = "champion"
_NOT_CURVES = ("stage", "epoch", "kept")  # columns of history.csv


def mirror(store: ObjectStore, models: Sequence[str] = ()) -> None:
    """Brings models into MLflow, each as a run, and the alias `champion` to whom the pointer names. Repeatable.

    Without MLFLOW_TRACKING_URI nothing is done, and nothing of MLflow is imported. What goes wrong on the way is a
    warning: the promotion or rollback is done, and the next one moves the alias on.

    Args:
        store: the object store.
        models: the candidates of a concluded run; none after a rollback.

    Raises:
        Refused: MLFLOW_TRACKING_URI is set and MLflow is not installed.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return
    client = _client()
    try:
        entries, now = promotion.history(store), promotion.champion(store)
        for name in models:
            _run(store, client, name, entries)
        if now:
            _champion(store, client, now, entries)
    except Exception as error:  # MLflow and its HTTP library raise many kinds; none may fail a step that is done
        logging.getLogger(__name__).warning("MLflow does not mirror this: %s: %s", type(error).__name__, error)


def _client() -> Any:  # noqa: ANN401 - MLflow may not be installed
    # MLflow's own seven tries of two minutes each would outlast the step.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    try:
        from mlflow import MlflowClient
    except ImportError as error:
        raise Refused(
            "MLFLOW_TRACKING_URI is set, so MLflow is expected to be installed. "
            f"Received: {error}. `pip install 'mlflow-skinny>=3'` where the report is written, or unset the variable."
        ) from None
    return MlflowClient()


def _run(store: ObjectStore, client: Any, name: str, entries: list[HistoryEntry]) -> str:  # noqa: ANN401
    """Id of the MLflow run of a model, with all that is known of it."""
    from mlflow.entities import Metric, Param, RunTag

    record = store.load(layout.model_record(name), Model)
    evaluation = queries.evaluation(store, name, entries)
    # The same time at every try: what MLflow gets twice is there once.
    at = int(datetime.fromisoformat(store.last_modified(layout.model_record(name))).timestamp() * 1000)
    found = client.get_experiment_by_name(NAME)
    experiment = found.experiment_id if found else client.create_experiment(NAME)
    # Names of models are the store's: letters, digits, "_", "." and "-".
    runs = client.search_runs([experiment], f"tags.`cxr.model` = '{name}'", max_results=1)
    run = runs[0] if runs else client.create_run(experiment, at, {"cxr.model": name}, name)
    facts = record.settings | {"architecture": record.architecture, "dataset": record.dataset}
    facts |= {"weights": record.weights, "image_size": record.image_size}
    tags = {"cxr.outcome": queries.outcome(entries, name), "cxr.artefact_sha256": record.artefact_sha256}
    tags |= {"cxr.dataset_sha256": record.dataset_sha256, "cxr.code": record.code}
    metrics = [Metric(figure, value, at, epoch) for figure, value, epoch in _curves(store, name)]
    figures = queries.all_figures(evaluation) if evaluation else {}
    metrics += [Metric(f"test/{figure}".replace(",", ""), v, at, 0) for figure, v in figures.items() if isfinite(v)]
    for start in range(0, len(metrics), 1000):  # MLflow takes so many at once
        client.log_batch(run.info.run_id, metrics[start : start + 1000])
    client.log_batch(
        run.info.run_id,
        params=[Param(key, str(value)) for key, value in facts.items()],
        tags=[RunTag(key, value) for key, value in tags.items()],
    )
    client.set_terminated(run.info.run_id, end_time=at)
    return run.info.run_id


def _curves(store: ObjectStore, model: str) -> list[tuple[str, float, int]]:
    """(name, value, epoch) of history.csv."""
    rows = csv.DictReader(io.StringIO(store.get(layout.training_curves(model)).decode()))
    values = [
        (name, float(value), int(row["epoch"]))
        for row in rows
        for name, value in row.items()
        if name not in _NOT_CURVES and value
    ]
    return [point for point in values if isfinite(point[1])]


def _champion(store: ObjectStore, client: Any, now: Champion, entries: list[HistoryEntry]) -> None:  # noqa: ANN401
    """Registers the model that is champion, where it is not yet, and moves the alias to it."""
    from mlflow.exceptions import MlflowException

    run = _run(store, client, now.model, entries)
    try:
        client.create_registered_model(NAME)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    found = client.search_model_versions(f"run_id = '{run}'")
    source = f"s3://{store.bucket}/{store.prefix}{layout.model_weights(now.model)}"
    version = (found[0] if found else client.create_model_version(NAME, source, run)).version
    client.set_model_version_tag(NAME, version, "cxr.version", str(now.version))
    client.set_registered_model_alias(NAME, ALIAS, version)
