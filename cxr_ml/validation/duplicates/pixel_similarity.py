"""Whether two pictures show the same: their correlation, after an affine alignment where that can help."""

import cv2
import numpy as np

SIDE = 128  # px, at which two pictures are compared
_RADIUS = SIDE / 16  # px, of the blur that takes out what chest films have in common: exposure and large shapes
_NOISE = 2.0  # grey levels: contrast below it is not amplified
_MIN_BEFORE_ALIGNMENT = 0.35  # correlation; copies cropped by 3 % keep 0.43 or more on real films
# Aligned at half their size, two pictures are told apart where their correlation lies so far below `enough`. Of 577
# copies of real films each kept 0.93 or more; of 301 strangers one in twenty reached 0.85.
_COARSE_MARGIN = 0.07


def normalise(grey: np.ndarray) -> np.ndarray:
    """Returns the picture with its local mean taken out and its local contrast evened out.

    Args:
        grey: uint8 [height, width].

    Returns:
        float32 [SIDE, SIDE].
    """
    interpolation = cv2.INTER_AREA if min(grey.shape) >= SIDE else cv2.INTER_LINEAR
    picture = cv2.resize(grey, (SIDE, SIDE), interpolation=interpolation).astype(np.float32)
    picture -= cv2.GaussianBlur(picture, (0, 0), _RADIUS)
    return picture / (np.sqrt(cv2.GaussianBlur(picture * picture, (0, 0), _RADIUS)) + _NOISE)


def correlate(first: np.ndarray, second: np.ndarray, enough: float) -> float:
    """Returns the correlation of two normalised pictures, after an affine alignment where it is below `enough` before.

    Not aligned are pictures below _MIN_BEFORE_ALIGNMENT, pictures on which ECC does not converge, and pictures that
    are far below `enough` when they are aligned at half their size.

    ECC: Evangelidis and Psarakis, Parametric Image Alignment Using Enhanced Correlation Coefficient Maximization, 2008.

    Args:
        first: float32 [SIDE, SIDE], from `normalise`.
        second: likewise.
        enough: correlation from which on two pictures are copies, -1 to 1.
    """
    product = float(np.linalg.norm(first) * np.linalg.norm(second))
    before = float((first * second).sum()) / product if product else 0.0
    if before >= enough or before < _MIN_BEFORE_ALIGNMENT:
        return before
    half = (SIDE // 2, SIDE // 2)
    coarse = [cv2.resize(picture, half, interpolation=cv2.INTER_AREA) for picture in (first, second)]
    if _correlate_aligned(coarse[0], coarse[1], 3) < enough - _COARSE_MARGIN:
        return before
    return max(before, _correlate_aligned(first, second, 5))


def _correlate_aligned(first: np.ndarray, second: np.ndarray, blur: int) -> float:
    """Correlation after alignment; -1 where ECC does not converge, since the pictures have nothing in common."""
    stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 40, 1e-4)
    start = np.eye(2, 3, dtype=np.float32)
    second = np.ascontiguousarray(second)
    try:
        # The stub of OpenCV lacks None for the mask.
        return cv2.findTransformECC(  # type: ignore[call-overload]
            first, second, start, cv2.MOTION_AFFINE, stop, None, blur
        )[0]
    except cv2.error:
        return -1.0
