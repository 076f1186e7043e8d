"""Names a model by all that it is trained with, so that a training that is repeated finds the model it made before."""

import hashlib
import json
from typing import Any

import cxr_ml
from cxr_ml.records import Dataset, Model
from cxr_ml.settings import Settings, TrainingSettings
from cxr_ml.training import backbones, distribution


def hyperparameters(settings: TrainingSettings) -> dict[str, Any]:
    """Returns the settings that make a model what it is: its name depends on them, and its record holds them."""
    # Which networks are trained beside it, and whether one was to begin with the champion, do not change a model.
    return settings.model_dump(exclude={"architectures", "warm_start"})


def name_model(settings: Settings, dataset: Dataset, architecture: str, champion: Model | None = None) -> str:
    """Returns the name of the model that these inputs make, such as inception_v3-d2-1f0c2a9b.

    Args:
        settings: hyper-parameters.
        dataset: what is trained on.
        architecture: name of the network.
        champion: with whose weights the training begins; None: with those that the settings name.

    Returns:
        `<architecture>-d<dataset>-<digest>`; the same inputs give the same name.

    Raises:
        Refused: unknown architecture, or the file of its weights is missing.
    """
    facts = {name: str(value) for name, value in hyperparameters(settings.training).items()}
    file = None if champion else backbones.find_weights(settings.training, settings.weights_dir, architecture)
    facts |= {
        "weights_sha256": file.sha256 if file else "",
        "precision": distribution.choose_precision(),
        "version": cxr_ml.__version__,
        "dataset": dataset.manifest_sha256,
        "classes": ",".join(settings.classes),
        "recall_floors": json.dumps(settings.gate.recall_floors, sort_keys=True),  # the operating point depends on them
    }
    facts |= {"champion": champion.artefact_sha256} if champion else {}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    return f"{architecture}-d{dataset.dataset}-{digest}"
