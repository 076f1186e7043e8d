"""Where a model looked: Grad-CAM of any backbone, how much of it lies outside the chest, and a picture of it."""

from collections.abc import Callable

import cv2
import keras
import numpy as np

from cxr_ml.errors import Refused
from cxr_ml.training import inputs

CENTRE = 0.8  # side of the central region as a share of the frame's; on most films it holds lungs and mediastinum
EVENLY = 1 - CENTRE**2  # share of attention outside the central region when it is spread evenly over the frame
_OPACITY = 0.6  # of the strongest heat, so that the film stays visible below it
_CONTOUR = 0.5  # of the maximum: where the line is drawn that tells in grey, too


def class_maps(network: keras.Model) -> keras.KerasTensor:
    """Returns what each place of the last feature maps adds to each class's score before softmax: (n, h, w, classes).

    With a mean over the feature maps and one dense layer above it, the gradient of a class's score by feature map k is
    the dense weight w_kc / (h · w) at every place. So Grad-CAM, ReLU(Σ_k w_kc A_k / (h · w)), needs no gradient, and is
    the class activation map (Selvaraju et al., Grad-CAM, ICCV 2017, section 3.1: "generalizes CAM").

    Raises:
        Refused: a model of another shape than `architectures.build_classifier` makes.
    """
    layers = {layer.name: layer for layer in network.layers}
    features, dropout, head = (layers.get(name) for name in ("features", "dropout", "head"))
    ending = ", ".join(f"{layer.name} ({type(layer).__name__})" for layer in network.layers[-4:])
    if not (
        isinstance(features, keras.layers.GlobalAveragePooling2D)
        and features.data_format == "channels_last"
        and isinstance(dropout, keras.layers.Dropout)
        and isinstance(head, keras.layers.Dense)
        and dropout.input is features.output
        and head.input is dropout.output
        and network.output is head.output
    ):
        raise Refused(
            "A model that ends in the layers features (GlobalAveragePooling2D), dropout (Dropout) and head (Dense) was "
            f"expected. Received: {network.name}, which ends in {ending}. Grad-CAM as it is made here holds for no "
            "other; train one with `cxr-ml train`."
        )
    return keras.ops.matmul(features.input, keras.ops.convert_to_numpy(head.kernel))


def relative(maps: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Returns Grad-CAM for one class of each image, divided by its own maximum.

    Args:
        maps: values of `class_maps`, float (n, h, w, classes).
        classes: int (n,).

    Returns:
        float32 (n, h, w), 0 to 1; 0 throughout where nothing speaks for the class.
    """
    heat = np.maximum(maps[np.arange(len(maps)), :, :, classes], 0).astype(np.float32)
    top = heat.max(axis=(1, 2), keepdims=True)
    return np.divide(heat, top, out=np.zeros_like(heat), where=top > 0)


def heat(
    network: keras.Model,
    images: np.ndarray,
    classes: np.ndarray,
    rows: np.ndarray | None = None,
    on_images: Callable[[int], None] = lambda images: None,
) -> np.ndarray:
    """Returns Grad-CAM of images for one class each.

    Args:
        network: as `architectures.build_classifier` makes it, with any backbone.
        images: uint8 (images, size, size, 1), of which no more than a batch is read at a time.
        classes: index of the class for each row, int (rows,).
        rows: int (rows,); None: all.
        on_images: called with the number of images done after each batch.

    Returns:
        float32 (rows, h, w), as `relative` gives it.

    Raises:
        Refused: a model of another shape.
    """
    rows = np.arange(len(images)) if rows is None else rows
    mapper = keras.Model(network.input, class_maps(network))
    if not len(rows):
        return np.zeros((0, *mapper.output_shape[1:3]), np.float32)
    counting = inputs.ImageCounter(32, len(rows), on_images)
    maps = mapper.predict(inputs.Batches(images, rows, 32), verbose=0, callbacks=[counting])
    return relative(maps, np.asarray(classes))


def outside(heat: np.ndarray) -> np.ndarray:
    """Returns the share of the attention outside the central chest region, which is CENTRE of the frame each way.

    A cell of the heat map that the region's edge crosses counts in part. Evenly spread attention gives EVENLY. The
    cells are coarse, and each saw more of the image than its own place, so small differences mean nothing.

    Args:
        heat: (n, h, w), at least 0.

    Returns:
        float64 (n,), 0 to 1; NaN where there is no attention at all.
    """
    total = heat.sum(axis=(1, 2), dtype=np.float64)
    central = np.einsum("nhw,h,w->n", heat, _central(heat.shape[1]), _central(heat.shape[2]), dtype=np.float64)
    return np.divide(total - central, total, out=np.full(len(heat), np.nan), where=total > 0)


def _central(cells: int) -> np.ndarray:
    """How much of each of so many cells in a row lies in the central region, 0 to 1."""
    edges = np.linspace(0, 1, cells + 1).clip((1 - CENTRE) / 2, (1 + CENTRE) / 2)
    return np.diff(edges) * cells


def overlay(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Returns a film with the heat over it, for a person to look at.

    The colours are those of inferno, whose lightness rises evenly with the heat, and no heat is transparent. A line
    goes round what has at least half of the maximum, so that the place is seen in a grey print as well.

    Args:
        picture: uint8 (height, width) or (height, width, 1).
        heat: (h, w), 0 to 1; stretched over the picture.

    Returns:
        RGB, uint8 (height, width, 3).
    """
    high, wide = picture.shape[:2]
    grey = picture.reshape(high, wide)
    fine = cv2.resize(heat.astype(np.float32), (wide, high), interpolation=cv2.INTER_LINEAR)
    colours = cv2.applyColorMap(np.rint(fine * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    opacity = _OPACITY * fine[..., None]
    shown = np.rint(grey[..., None] * (1 - opacity) + colours * opacity).astype(np.uint8)
    lines, _ = cv2.findContours((fine >= _CONTOUR).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    thick = max(1, round(max(high, wide) / 256))
    # Dark beside bright, so that it shows on any film.
    cv2.drawContours(shown, lines, -1, (0, 0, 0), 3 * thick)
    cv2.drawContours(shown, lines, -1, (255, 255, 255), thick)
    return shown
