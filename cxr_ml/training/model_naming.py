"""Names a model by all that it is trained with, so that a training that is repeated finds the model it made before."""

import hashlib
import json

import cxr_ml
from cxr_ml.records import Dataset, Model
from cxr_ml.settings import Settings
from cxr_ml.training import backbones, distribution

# Settings that make a model what it is: its name depends on them, and its record holds them.
HYPERPARAMETERS = (
    "image_size", "batch_size", "head_epochs", "fine_tune_epochs", "head_learning_rate", "fine_tune_learning_rate",
    "fine_tune_decay", "patience", "dropout", "head_views", "freeze_normalisation", "disguised", "seed", "weights",
)  # fmt: skip


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
    facts = {k: str(getattr(settings, k)) for k in HYPERPARAMETERS}
    file = None if champion else backbones.find_weights(settings, architecture)
    facts |= {
        "weights_sha256": file.sha256 if file else "",
        "precision": distribution.choose_precision(),
        "version": cxr_ml.__version__,
        "dataset": dataset.manifest_sha256,
        "classes": ",".join(settings.classes),
        "recall_floors": json.dumps(settings.recall_floors, sort_keys=True),  # the operating point depends on them
    }
    facts |= {"champion": champion.artefact_sha256} if champion else {}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    return f"{architecture}-d{dataset.dataset}-{digest}"
