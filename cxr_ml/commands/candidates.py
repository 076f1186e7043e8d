"""`cxr-ml train` and `evaluate`: candidates of a dataset version."""

import sys
from typing import Annotated

import typer

from cxr_ml.commands.shared import Json, connect, following, show
from cxr_ml.errors import Refused
from cxr_ml.records import Evaluation, Model
from cxr_ml.reporting.terminal import candidates_table
from cxr_ml.settings import Settings
from cxr_ml.store import ObjectStore


def train(
    dataset: int, architecture: Annotated[list[str] | None, typer.Argument()] = None, json_: Json = False
) -> None:
    """Train candidates on a dataset version; default: the architectures of the settings."""
    from cxr_ml.registry import promotion

    with connect() as (store, settings):
        chosen = architecture or list(settings.training.architectures)
        champion = promotion.champion(store)
        warm = champion.model if champion else None
        models = [train_candidate(store, settings, dataset, name, warm, json_) for name in chosen]
        show([m.model_dump(mode="json") for m in models], json_, "\n".join(m.model for m in models))


def evaluate(model: list[str], json_: Json = False) -> None:
    """Evaluate candidates of one dataset, and the champion on the same images."""
    from cxr_ml.registry import promotion

    with connect() as (store, settings):
        numbers = {promotion.load_model_record(store, name).dataset for name in model}
        if len(numbers) != 1:
            raise Refused(f"Candidates must come from one dataset version. Received: {sorted(numbers)}")
        champion = promotion.champion(store)
        evaluations = evaluate_candidates(
            store, settings, numbers.pop(), model, champion.model if champion else None, json_
        )
        show([e.model_dump(mode="json") for e in evaluations], json_, candidates_table(evaluations))


def train_candidate(
    store: ObjectStore, settings: Settings, number: int, architecture: str, champion: str | None, json_: bool
) -> Model:
    """Trains a candidate, showing how far it has come."""
    from cxr_ml.training.train import train_model  # it loads a deep-learning framework

    # On a terminal, a bar of its own shows each epoch.
    with following(json_ or sys.stdout.isatty()) as on_progress:
        return train_model(store, settings, number, architecture, not json_, champion, on_progress)


def evaluate_candidates(
    store: ObjectStore, settings: Settings, number: int, models: list[str], champion: str | None, json_: bool
) -> list[Evaluation]:
    """Evaluates candidates of a dataset, showing how far it has come."""
    from cxr_ml.evaluation.evaluate import evaluate_models

    with following(json_) as on_progress:
        return evaluate_models(store, settings, number, models, champion, on_progress)
