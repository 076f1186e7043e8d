"""Retraining of a chest X-ray classifier; knows nothing of Airflow.

The packages, in the order of the story:

imaging → ingest → validation → dataset → training → evaluation → registry → reporting → serving → commands.
Each imports only packages before it (`lint-imports` holds it in CI), and opens with what comes in, what goes out and
what always holds.
"""

from typing import TYPE_CHECKING

from cxr_ml.quiet import silence_tensorflow

if TYPE_CHECKING:
    from cxr_ml.serving.predict import Predict

__version__ = "0.1.0"
silence_tensorflow()  # here, since whatever imports TensorFlow has imported this before


def load_champion() -> "Predict":
    """A function that predicts images with the champion, for services; settings come from CXR_* and cxr.toml.

    `predict = cxr_ml.load_champion()`, then `for row in predict([Path("film.png"), data]): …`, as often as you like;
    `cxr_ml.serving.predict.load_predictor` says what it takes and yields. It stays with the model that is champion now.

    Raises:
        Refused: there is no champion, or it cannot be trusted.
    """
    from cxr_ml import settings  # the framework is loaded only for who predicts
    from cxr_ml.serving import predict
    from cxr_ml.store import ObjectStore

    loaded = settings.load()
    return predict.load_predictor(ObjectStore(loaded.store), loaded)
