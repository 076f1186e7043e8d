"""What disguised views are worth: a logistic head on frozen features, on test images as they are and in disguise.

    CXR_XRAYS=… CXR_WEIGHTS_DIR=… .venv/bin/python benchmarks/robustness.py [--architecture inception_v3] [--size 256]
        [--views 3]

train/ and test/ of the first drop. Four heads: on the training images as they are; with so many augmented views of each
beside them; with so many disguised views; with so many views that are both. The disguises of the test images are those
of `evaluate`, which are never drawn exactly in training.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np
from head import CLASSES, xrays
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, recall_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cxr_ml.settings import Settings
from cxr_ml.training import architectures
from cxr_ml.training.augment import augment_images
from cxr_ml.training.corruptions import FIXED, corrupt_images

PENALTY = 0.01  # scikit-learn's C; some thousand features of some thousand images


def main() -> None:
    """Prints a line for each head and kind of test images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="inception_v3")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--views", type=int, default=3)
    given = parser.parse_args()
    settings = Settings(weights_dir=Path(os.environ["CXR_WEIGHTS_DIR"]), training={"image_size": given.size})
    drop = Path(os.environ["CXR_XRAYS"]) / "drops" / "2026-01-05"
    x, y = xrays(drop, given.size)
    test, truth = xrays(drop, given.size, "test")
    backbone = architectures.build_backbone(settings.training, settings.weights_dir, given.architecture)
    classifier = architectures.build_classifier(backbone, len(CLASSES), 0.0)
    network = keras.Model(classifier.input, classifier.get_layer("features").output)

    def features(images: np.ndarray) -> np.ndarray:
        return network.predict(images, batch_size=32, verbose=0)

    rng = np.random.default_rng(0)
    plain = features(x)
    judged = {"as is": features(test)} | {name: features(change(test)) for name, change in FIXED.items()}
    kinds = {
        "no views": None,
        "augmented": lambda: augment_images(x, rng),
        "disguised": lambda: corrupt_images(x, rng),
        "both": lambda: corrupt_images(augment_images(x, rng), rng),
    }
    for kind, view in kinds.items():
        seen = [plain, *(features(view()) for _ in range(given.views if view else 0))]
        head = LogisticRegression(C=PENALTY, class_weight="balanced", max_iter=1000)
        head = make_pipeline(StandardScaler(), head).fit(np.concatenate(seen), np.tile(y, len(seen)))
        for name, shown in judged.items():
            predicted = head.predict(shown)
            recalls = recall_score(truth, predicted, average=None)
            told = ", ".join(f"{label} {recall:.2f}" for label, recall in zip(CLASSES, recalls, strict=True))
            print(
                f"{kind:10} {name:10} macro F1 {f1_score(truth, predicted, average='macro'):.3f}, recall {told}",
                flush=True,
            )


if __name__ == "__main__":
    main()
