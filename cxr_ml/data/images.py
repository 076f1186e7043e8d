"""One image file: refuse it or measure it, with one look at its header and one decode. Pure functions on bytes."""

import hashlib
import io
import struct
import zlib
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from cxr_ml.data.boxes import white_box
from cxr_ml.data.containers import BadImage, Header, clean, is_dicom, look
from cxr_ml.settings import Settings

__all__ = [
    "BadImage", "clean", "decode_grey", "fine_hash", "measure", "measure_and_decode", "open_image", "perceptual_hash",
    "ring", "shrink", "square",
]  # fmt: skip

SMALL = 512  # px, longest side of the picture that is measured: see `shrink`
BLACK, WHITE = 12, 245  # 8-bit grey: at most, at least; JPEG noise around 0 and 255 stays inside
BORDER_SHARE = 0.98  # of a row or column that must be black (white) to be border; a marker letter may stand in it

_WHOLE = 1 << 21  # px; pictures with more are converted in strips
_STRIP = 1 << 19  # px
_PNG_LEVEL = 4
_LEVELS = np.arange(256.0)
RING = 4  # px, width of the border ring of the picture at 32×32 that the probe for shortcuts sees
_FRAME = np.ones((32, 32), bool)
_FRAME[RING:-RING, RING:-RING] = False


class Opened(NamedTuple):
    """A file whose header was looked at and whose picture was decoded, once."""

    format: str  # png, jpeg or dicom; what is stored has the `extension` of it
    mode: str  # Pillow's; of DICOM the photometric interpretation
    bits: int  # per sample, as stored in the file
    width: int  # px, of the picture in the file
    height: int  # px
    pixels: np.ndarray  # uint8 [height, width] or [height, width, RGB]
    clean: bytes  # what is stored: the file without metadata; of DICOM the picture as a grey PNG of 8 bits


def open_image(data: bytes, settings: Settings, side: int | None = None) -> Opened:
    """Decodes a PNG, JPEG or DICOM. Limits of settings are checked before any pixel is decoded.

    A picture of 50 million pixels takes at most 600 MB while it is decoded (CMYK, progressive), of grey 250 MB.

    Args:
        data: a whole file.
        settings: max_file_bytes, max_pixels.
        side: px, where the picture is wanted for `shrink` to this side only: a JPEG then comes at 1/2, 1/4 or 1/8
            of its size, never smaller than `shrink` would make it. All its coded data are read nevertheless, so that
            damage is found as in a full decode.

    Raises:
        BadImage: with the reason as its code.
    """
    if len(data) > settings.max_file_bytes:
        raise BadImage(
            "too_large",
            f"A file of at most {settings.max_file_bytes:,} bytes was expected. Received: {len(data):,} bytes",
        )
    if is_dicom(data):
        from cxr_ml.data.dicom import open_dicom  # pydicom takes 0.2 s to import

        header, mode, pixels = open_dicom(data, settings)
        return Opened(header.format, mode, header.bits, header.width, header.height, pixels, _png(pixels))
    header = look(data)
    if header.width * header.height > settings.max_pixels:
        raise BadImage(
            "too_many_pixels",
            f"At most {settings.max_pixels:,} pixels were expected. Received: {header.width} × {header.height}",
        )
    cleaned = clean(data, header.format)
    mode, pixels = _decode(cleaned, header, side)
    return Opened(header.format, mode, header.bits, header.width, header.height, pixels, cleaned)


def measure(data: bytes, settings: Settings) -> tuple[dict[str, str | int | float], bytes]:
    """Measurements of one PNG or JPEG file, and its bytes without metadata, which are what is decoded and stored.

    All is measured on the picture brought down to at most SMALL px a side, large JPEGs from a decode at 1/2, 1/4 or
    1/8 of their size, so fine grain of a large picture counts in no figure. Grey levels run from 0 to 255 as those of
    `decode_grey`, whatever the bit depth: `mean`, `std`, `p01` and `p99` are theirs.
    `saturation` is sum(max - min) / sum(max) over the pixels' RGB: 0 for grey film, towards 1 for a strong cast.
    `sharpness` is the variance of the Laplacian of the picture at 256×256. `phash`, `fine_hash` and `ring` are
    described at `perceptual_hash`, `fine_hash` and `ring`.

    Returns:
        (sha256 of the clean bytes, format, bytes of the file, width, height, mode, bits, mean, std, p01, p99,
        saturation, sharpness, black_border, white_border, white_box, phash, fine_hash, ring), clean bytes

    Raises:
        BadImage: with the reason as its code. Limits of settings are checked before any pixel is decoded.
    """
    opened = open_image(data, settings, SMALL)
    return _measures(opened, len(data)), opened.clean


def measure_and_decode(data: bytes, settings: Settings) -> tuple[dict[str, str | int | float], np.ndarray]:
    """Measurements as `measure` gives them, and `decode_grey` of what would be stored; most files are decoded once.

    Raises:
        BadImage: as `measure`.
    """
    opened = open_image(data, settings, SMALL)
    whole = opened.pixels.shape[:2] == (opened.height, opened.width)
    return _measures(opened, len(data)), _grey(opened.pixels) if whole else decode_grey(opened.clean)


def _measures(opened: Opened, size: int) -> dict[str, str | int | float]:
    small = _small(opened)
    grey, darkest, brightest = _channels(small)
    counts = cv2.calcHist([grey], [0], None, [256], [0, 256]).ravel().astype(np.float64)
    share = counts / grey.size
    mean = float(share @ _LEVELS)
    below = np.cumsum(share)
    middle = square(grey, 256)
    tiny = square(middle, 32)
    return {
        "sha256": hashlib.sha256(opened.clean).hexdigest(),
        "format": opened.format,
        "bytes": size,
        "width": opened.width,
        "height": opened.height,
        "mode": opened.mode,
        "bits": opened.bits,
        "mean": mean,
        "std": float(np.sqrt(share @ (_LEVELS - mean) ** 2)),
        "p01": float(np.searchsorted(below, 0.01)),
        "p99": float(np.searchsorted(below, 0.99)),
        "saturation": _saturation(darkest, brightest),
        "sharpness": _sharpness(middle),
        "black_border": _border(grey, counts, 0, BLACK),
        "white_border": _border(grey, counts, WHITE, 255),
        "white_box": white_box(darkest),
        "phash": perceptual_hash(tiny),
        "fine_hash": fine_hash(tiny),
        "ring": ring(tiny),
    }


def decode_grey(data: bytes) -> np.ndarray:
    """Grey picture of a stored image, uint8 [height, width], in full.

    Colour becomes luma (ITU-R BT.601). Transparent pixels are laid on black. Grey of 16 bits is divided by the power of
    two that brings its highest value below 256, so that 10-, 12- and 14-bit data in 16-bit files keep their contrast;
    16-bit colour keeps the high byte.

    Raises:
        BadImage: not a PNG or JPEG, or damaged.
    """
    header = look(data)
    return _grey(_decode(clean(data, header.format), header, grey=True)[1])


def shrink(pixels: np.ndarray, side: int) -> np.ndarray:
    """The picture averaged over squares of k × k px, k the smallest for which no side is longer than `side`.

    Whole squares are several times as fast as any other factor; up to k - 1 px at the right and the bottom fall away.
    """
    k, rows, columns = _squares(*pixels.shape[:2], side)
    if k == 1:
        return pixels
    return cv2.resize(pixels[: rows * k, : columns * k], (columns, rows), interpolation=cv2.INTER_AREA)


def _squares(height: int, width: int, side: int) -> tuple[int, int, int]:
    """Side of the squares of `shrink`, rows of them, columns of them."""
    k = -(-max(height, width) // side)
    return k, max(1, height // k), max(1, width // k)


def _small(opened: Opened) -> np.ndarray:
    """`shrink` of the picture to SMALL, in the same size where the decoder has done a part of it."""
    pixels = opened.pixels
    if pixels.shape[:2] == (opened.height, opened.width):
        return shrink(pixels, SMALL)
    k, rows, columns = _squares(opened.height, opened.width, SMALL)
    done = round(opened.width / pixels.shape[1]) if columns > rows else round(opened.height / pixels.shape[0])
    pixels = pixels[: -(-rows * k // done), : -(-columns * k // done)]
    if pixels.shape[:2] == (rows, columns):
        return np.ascontiguousarray(pixels)
    # Below a factor of 2 no pixel is passed over, and this way is five times as fast as the average.
    way = cv2.INTER_LINEAR if k < 2 * done else cv2.INTER_AREA
    return cv2.resize(pixels, (columns, rows), interpolation=way)


def square(grey: np.ndarray, side: int) -> np.ndarray:
    """The picture stretched to side × side px, averaged where it shrinks."""
    if grey.shape == (side, side):
        return grey
    if side < min(grey.shape) and max(grey.shape) <= 2 * side:
        # Averages over 2 × 2 px of a picture laid out at twice the side: a third of the time of uneven averages.
        grey = cv2.resize(grey, (2 * side, 2 * side), interpolation=cv2.INTER_LINEAR)
    way = cv2.INTER_AREA if min(grey.shape) >= side else cv2.INTER_LINEAR
    return cv2.resize(grey, (side, side), interpolation=way)


def perceptual_hash(grey: np.ndarray) -> str:
    """64-bit DCT hash as 16 hex digits: the signs of the 8×8 coefficients of frequency 1 to 8 each way, at 32×32.

    Signs do not change with brightness and contrast, and mirroring turns exactly those of odd horizontal frequency.
    """
    bits = cv2.dct(square(grey, 32).astype(np.float32))[1:9, 1:9] > 0
    return np.packbits(bits).tobytes().hex()


def fine_hash(grey: np.ndarray) -> str:
    """1024-bit hash as 256 hex digits: for each pixel at 32×32, row by row, whether it is brighter than around it.

    Around it: a Gaussian of 1 px. Finer than `perceptual_hash`, it tells apart chest films whose large shapes agree.
    """
    small = square(grey, 32).astype(np.float32)
    return np.packbits(small > cv2.GaussianBlur(small, (0, 0), 1.0)).tobytes().hex()


def ring(grey: np.ndarray) -> str:
    """The outermost RING px of the picture at 32×32: how it was framed, no lungs. 448 grey levels as 896 hex digits."""
    return square(grey, 32)[_FRAME].tobytes().hex()


def _decode(cleaned: bytes, header: Header, side: int | None = None, grey: bool = False) -> tuple[str, np.ndarray]:
    """(Pillow's mode, pixels uint8 [height, width] or [height, width, RGB]); `side` as in `open_image`.

    `grey`: colour is not wanted, so that what can be made grey bit by bit is.
    """
    if header.format == "jpeg" and (found := _plain_jpeg(cleaned, header, side)):
        return found
    try:
        with Image.open(io.BytesIO(cleaned), formats=(header.format.upper(),)) as image:
            if image.size != (header.width, header.height):
                raise BadImage(
                    "unreadable", f"{header.width} × {header.height} pixels were expected. Received: {image.size}"
                )
            if side and image.mode == "CMYK":  # of JPEG only
                part = _part(header.height, header.width, side)
                image.draft(image.mode, (header.width // part, header.height // part))
            image.load()
            return image.mode, _pixels(image, grey)
    except Image.DecompressionBombError as error:
        raise BadImage(
            "too_many_pixels", f"A picture of a size that Pillow decodes was expected. Received: {error}"
        ) from None
    except (OSError, ValueError, SyntaxError, struct.error, zlib.error, IndexError) as error:
        code = "truncated" if "truncated" in str(error) else "unreadable"
        raise BadImage(code, f"A sound {header.format.upper()} was expected. Received: {error}") from None


def _part(height: int, width: int, side: int | None) -> int:
    """Of libjpeg's 1/8, 1/4, 1/2 and 1/1 the smallest size that `shrink` would still have to shrink, as its divisor."""
    times = _squares(height, width, side)[0] if side else 1
    return next(k for k in (8, 4, 2, 1) if k <= times)


def _plain_jpeg(cleaned: bytes, header: Header, side: int | None) -> tuple[str, np.ndarray] | None:
    """The same as Pillow gives, by the same library in half the time; None where Pillow has to say what it is."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(cleaned)
        if (width, height, header.bits) != (header.width, header.height, 8) or colours not in ("Gray", "YCbCr"):
            return None
        part = _part(height, width, side)
        reduced = {} if part == 1 else {"min_height": -(-height // part), "min_width": -(-width // part)}
        # The slower ways are Pillow's defaults. `strict` makes warnings errors, which Pillow is to judge.
        wanted = "GRAY" if colours == "Gray" else "RGB"
        pixels = simplejpeg.decode_jpeg(cleaned, wanted, fastdct=False, fastupsample=False, strict=True, **reduced)
    except ValueError:
        return None
    return ("L", pixels[..., 0]) if colours == "Gray" else ("RGB", pixels)


def _pixels(image: Image.Image, grey: bool) -> np.ndarray:
    """What a loaded picture shows. In strips: whole copies of a large one in other modes would take a gigabyte."""
    wide, high = image.size
    channels: tuple[int, ...] = ()
    if image.mode.startswith("I"):
        shift = max(0, int(image.getextrema()[1]).bit_length() - 8)

        def show(part: Image.Image) -> np.ndarray:
            return np.asarray(part) >> shift
    elif image.has_transparency_data:
        channels, show = (3,), _on_black
    else:
        wanted = "L" if image.mode in ("L", "1") else "RGB"
        channels = () if wanted == "L" else (3,)

        def show(part: Image.Image) -> np.ndarray:
            return np.asarray(part if part.mode == wanted else part.convert(wanted))

    if wide * high <= _WHOLE:
        return np.ascontiguousarray(show(image), dtype=np.uint8)
    channels, rows = () if grey else channels, max(1, _STRIP // wide)
    pixels = np.empty((high, wide, *channels), np.uint8)
    for y in range(0, high, rows):
        strip = show(image.crop((0, y, wide, min(y + rows, high))))
        pixels[y : y + rows] = _grey(strip) if grey else strip
    return pixels


def _on_black(image: Image.Image) -> np.ndarray:
    rgba = np.asarray(image if image.mode == "RGBA" else image.convert("RGBA"))
    rgb, alpha = cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB), cv2.extractChannel(rgba, 3)
    return cv2.multiply(rgb, cv2.cvtColor(alpha, cv2.COLOR_GRAY2RGB), scale=1 / 255)  # rounded


def _png(grey: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG", compress_level=_PNG_LEVEL)
    return buffer.getvalue()


def _grey(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)


def _channels(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grey, the darkest and the brightest colour channel of each pixel; one array thrice where there is no colour."""
    if pixels.ndim == 2:
        return pixels, pixels, pixels
    red, green, blue = cv2.split(pixels)
    if not (cv2.norm(red, green, cv2.NORM_INF) or cv2.norm(red, blue, cv2.NORM_INF)):
        return red, red, red
    return _grey(pixels), cv2.min(cv2.min(red, green), blue), cv2.max(cv2.max(red, green), blue)


def _saturation(darkest: np.ndarray, brightest: np.ndarray) -> float:
    if darkest is brightest:
        return 0.0
    total = cv2.sumElems(brightest)[0]
    return cv2.sumElems(brightest - darkest)[0] / total if total else 0.0


def _sharpness(square: np.ndarray) -> float:
    """Variance of the Laplacian, as mean of the squares less square of the mean: exact on whole numbers, and fast."""
    edges = cv2.Laplacian(square, cv2.CV_16S)
    return max(0.0, cv2.norm(edges, cv2.NORM_L2SQR) / edges.size - (cv2.sumElems(edges)[0] / edges.size) ** 2)


def _border(grey: np.ndarray, counts: np.ndarray, low: int, high: int) -> float:
    """Share of the frame in whole rows, then in whole columns of what remains, from the edges, at `low` to `high`.

    `counts`: pixels of each grey level, [256].
    """

    def inside(shares: np.ndarray) -> slice:
        rest = np.flatnonzero(shares < 255 * BORDER_SHARE)
        return slice(rest[0], rest[-1] + 1) if len(rest) else slice(0, 0)

    if counts[low : high + 1].sum() < BORDER_SHARE * min(grey.shape):
        return 0.0
    edges = grey[0], grey[-1], grey[:, 0], grey[:, -1]
    if all(np.count_nonzero((edge >= low) & (edge <= high)) < BORDER_SHARE * edge.size for edge in edges):
        return 0.0
    mask = cv2.inRange(grey, low, high)
    rows = mask[inside(cv2.reduce(mask, 1, cv2.REDUCE_AVG, dtype=cv2.CV_32F).ravel())]
    kept = rows[:, inside(cv2.reduce(rows, 0, cv2.REDUCE_AVG, dtype=cv2.CV_32F).ravel())] if rows.size else rows
    return 1.0 - kept.size / mask.size
