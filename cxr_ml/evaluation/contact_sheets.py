"""Contact sheets: for each class some test images that a model recognised and some that it missed, and where it looked.

They show X-rays, so they lie in the store and on pages of the store, and never go into a mail.
"""

import hashlib
import io
from collections.abc import Callable

import keras
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from cxr_ml.evaluation import gradcam, stored_explanations
from cxr_ml.records import Dataset, Explanation, Model, SheetImage
from cxr_ml.settings import TrainingSettings
from cxr_ml.store import ObjectStore

MAX_PER_OUTCOME = 4  # hits, and misses, of a class that are shown
_MAX_LETTERS = 14  # of a label above a tile, with the word before it
_PER_ROW = 2  # examples in a row, of two pictures each: legible when a phone shows them 360 px wide


def write(
    store: ObjectStore,
    settings: TrainingSettings,
    record: Model,
    dataset: Dataset,
    network: keras.Model,
    images: np.ndarray,
    manifest: pd.DataFrame,
    rows: np.ndarray,
    probabilities: np.ndarray,
    predicted: np.ndarray,
    on_images: Callable[[int], None] = lambda images: None,
) -> Explanation:
    """Explains a model on test images and stores the explanation; an existing one is returned as it is.

    Args:
        store: the object store.
        settings: the seed.
        record: of the model; `classes` are the order of the outputs.
        dataset: that the images are of.
        network: the model.
        images: all of the dataset, uint8 (images, size, size, 1).
        manifest: of the dataset, row for row.
        rows: which images were predicted, int (n,).
        probabilities: of the classes, float (n, classes).
        predicted: index of the class that was decided for, int (n,).
        on_images: called with the number of images that are explained.

    Returns:
        The record. Hits are drawn at random, misses are those of which the model was the surest.
    """
    existing = stored_explanations.load(store, record.model, dataset.dataset)
    if existing is not None:
        return existing
    labels, names = manifest["label"].to_numpy()[rows], manifest["sha256"].to_numpy()[rows]
    decided = np.asarray(record.classes)[predicted]
    heat = gradcam.heat(network, images, predicted, rows, on_images)
    share = gradcam.outside(heat)
    sureness = probabilities[np.arange(len(rows)), predicted]
    shown: list[SheetImage] = []
    sheets = {}
    for label in record.classes:
        places = choose(labels == label, decided == label, sureness, names, settings.seed)
        examples = [
            SheetImage(
                sha256=str(names[i]),
                label=label,
                predicted=str(decided[i]),
                probability=float(sureness[i]),
                outside=float(share[i]),
            )
            for i in places
        ]
        pictures = [(images[rows[i]], gradcam.overlay(images[rows[i]], heat[i])) for i in places]
        sheets[label] = draw(label, examples, pictures)
        shown += examples
    explanation = Explanation(
        model=record.model,
        artefact_sha256=record.artefact_sha256,
        dataset=dataset.dataset,
        dataset_sha256=dataset.manifest_sha256,
        outside={label: _mean(share[labels == label]) for label in record.classes},
        evenly=round(gradcam.EVENLY, 4),
        shown=tuple(shown),
        sheets={label: hashlib.sha256(png).hexdigest() for label, png in sheets.items()},
    )
    stored_explanations.save(store, explanation, sheets)
    return explanation


def choose(
    of_class: np.ndarray, predicted: np.ndarray, sureness: np.ndarray, names: np.ndarray, seed: int
) -> np.ndarray:
    """Returns which images of a class are shown: hits at random, then the misses of which the model was the surest.

    Args:
        of_class: whether an image is of the class, bool (n,).
        predicted: whether the model decided for it, bool (n,).
        sureness: probability of what the model decided for, float (n,).
        names: SHA-256 of the images, (n,); the choice depends on the images, not on their order.
        seed: of the random choice.

    Returns:
        Their places: at most MAX_PER_OUTCOME hits and as many misses, int.
    """
    ordered = np.argsort(names, kind="stable")
    hits, misses = ordered[(of_class & predicted)[ordered]], ordered[(of_class & ~predicted)[ordered]]
    drawn = np.random.default_rng(seed).permutation(hits)[:MAX_PER_OUTCOME]
    return np.concatenate([drawn, misses[np.argsort(-sureness[misses], kind="stable")][:MAX_PER_OUTCOME]]).astype(int)


def draw(label: str, examples: list[SheetImage], pictures: list[tuple[np.ndarray, np.ndarray]]) -> bytes:
    """Returns the contact sheet of a class as PNG.

    Args:
        label: the class.
        examples: what is shown, in this order.
        pictures: of each the film, uint8 (size, size, 1), and the film with the heat over it, RGB.
    """
    parts = [
        ("recognised, drawn at random", [i for i, e in enumerate(examples) if e.predicted == label]),
        ("missed, the surest first", [i for i, e in enumerate(examples) if e.predicted != label]),
    ]
    lines = [max(1, -(-len(places) // _PER_ROW)) for _, places in parts]
    figure = Figure(figsize=(5.6, 0.4 + sum(0.35 + 1.75 * n for n in lines)), layout="constrained", facecolor="white")
    figure.suptitle(_plain(f"test images of {label}"), fontsize=11)
    blocks = figure.subfigures(2, 1, squeeze=False, height_ratios=lines).flat
    for (title, places), block, high in zip(parts, blocks, lines, strict=True):
        block.suptitle(title if places else f"{title}: none", fontsize=10)
        grid = block.subplots(high, 2 * _PER_ROW, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for number, place in enumerate(places):
            line, column = divmod(number, _PER_ROW)
            example, (film, heated) = examples[place], pictures[place]
            _tile(grid[line, 2 * column], film, f"true {_short(label)}\nsaid {_short(example.predicted)}")
            _tile(grid[line, 2 * column + 1], heated, f"{100 * example.probability:.1f} %\n{example.sha256[:8]}")
    return _png(figure)


def _tile(axes: Axes, picture: np.ndarray, text: str) -> None:
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
    axes.set_title(_plain(text), fontsize=8)


def _short(label: str) -> str:
    """A label that fits above a tile: of a long one both ends, for many differ only there."""
    return label if len(label) <= _MAX_LETTERS else f"{label[: _MAX_LETTERS // 2 - 1]}…{label[-(_MAX_LETTERS // 2) :]}"


def _plain(text: str) -> str:
    # An unescaped pair of dollars would be read as mathematics.
    return text.replace("$", r"\$")


def _png(figure: Figure) -> bytes:
    figure.set_dpi(180)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    out = io.BytesIO()
    image.quantize(256).save(out, format="png", optimize=True)
    return out.getvalue()


def _mean(shares: np.ndarray) -> float:
    known = shares[np.isfinite(shares)]
    return float(known.mean()) if len(known) else float("nan")
