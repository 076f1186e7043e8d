"""The pixels of one image file, of which the header is looked at and the limits checked before; one decode."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple

import cv2
import kornia_rs
import numpy as np
import simplejpeg
from PIL import Image

from cxr_ml.imaging.formats import BadImage, Header, clean, is_dicom, look
from cxr_ml.settings import Settings

SMALL = 384  # px, longest side of a picture that is measured, but see `shrink`
_WHOLE = 1 << 21  # px; pictures with more are converted in strips
_STRIP = 1 << 19  # px
_PNG_LEVEL = 4


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
        from cxr_ml.imaging.dicom import open_dicom  # pydicom takes 0.2 s to import

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


def decode_grey(data: bytes) -> np.ndarray:
    """Grey picture of a stored image, uint8 [height, width], in full.

    Colour becomes luma (ITU-R BT.601). Transparent pixels are laid on black. Grey of 16 bits is divided by the power of
    two that brings its highest value below 256, so that 10-, 12- and 14-bit data in 16-bit files keep their contrast;
    16-bit colour keeps the high byte.

    Raises:
        BadImage: not a PNG or JPEG, or damaged.
    """
    header = look(data)
    return luma(_decode(clean(data, header.format), header, grey=True)[1])


def shrink(pixels: np.ndarray, side: int) -> np.ndarray:
    """The picture averaged over squares of k × k px, k the smallest for which no side is longer than `side`.

    What is longer by up to a third is left as it is: halved, it would lose too much. Whole squares are several times as
    fast as any other factor; up to k - 1 px at the right and the bottom fall away.
    """
    k, rows, columns = squares(*pixels.shape[:2], side)
    if k == 1:
        return pixels
    return cv2.resize(pixels[: rows * k, : columns * k], (columns, rows), interpolation=cv2.INTER_AREA)


def squares(height: int, width: int, side: int) -> tuple[int, int, int]:
    """Side of the squares of `shrink`, rows of them, columns of them."""
    longest = max(height, width)
    k = 1 if 3 * longest <= 4 * side else -(-longest // side)
    return k, max(1, height // k), max(1, width // k)


def _decode(cleaned: bytes, header: Header, side: int | None = None, grey: bool = False) -> tuple[str, np.ndarray]:
    """(Pillow's mode, pixels uint8 [height, width] or [height, width, RGB]); `side` as in `open_image`.

    `grey`: colour is not wanted, so that what can be made grey bit by bit is.
    """
    found = None
    if header.format == "jpeg":
        found = _plain_jpeg(cleaned, header, side)
    elif not grey:
        found = _plain_png(cleaned, header)
    if found:
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
    times = squares(height, width, side)[0] if side else 1
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


def _plain_png(cleaned: bytes, header: Header) -> tuple[str, np.ndarray] | None:
    """The same as Pillow gives, in less than half the time; None where Pillow has to say what it is.

    8 bits of grey, RGB or RGBA, without palette and transparent colour. A wrong Adler-32 behind right CRCs is not
    noticed. Python's lock is held meanwhile, so this is for processes that decode one file at a time.
    """
    known = {0: ("L", "mono"), 2: ("RGB", "rgb"), 6: ("RGBA", "rgba")}.get(cleaned[25])
    if not known or header.bits != 8 or cleaned[37:41] != b"IDAT" or b"tRNS" in cleaned:
        return None
    mode, wanted = known
    try:
        pixels = kornia_rs.io.decode_image_png_u8(cleaned, (header.height, header.width), wanted)
    except BaseException as error:  # it knows no other than Exception; and that of Rust when a decoder has a fault
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        return None
    if mode == "L":
        return mode, pixels[..., 0]
    if mode == "RGB":
        return mode, pixels
    return mode, _in_strips(lambda first, last: _on_black(pixels[first:last]), pixels.shape[:2], (3,), grey=False)


def _pixels(image: Image.Image, grey: bool) -> np.ndarray:
    """What a loaded picture shows."""
    wide, high = image.size
    channels: tuple[int, ...] = (3,)
    if image.mode.startswith("I"):
        shift = max(0, int(image.getextrema()[1]).bit_length() - 8)
        channels = ()

        def show(part: Image.Image) -> np.ndarray:
            return np.asarray(part) >> shift
    elif image.has_transparency_data:

        def show(part: Image.Image) -> np.ndarray:
            return _on_black(np.asarray(part if part.mode == "RGBA" else part.convert("RGBA")))
    else:
        wanted = "L" if image.mode in ("L", "1") else "RGB"
        channels = () if wanted == "L" else (3,)

        def show(part: Image.Image) -> np.ndarray:
            return np.asarray(part if part.mode == wanted else part.convert(wanted))

    def rows(first: int, last: int) -> np.ndarray:
        return show(image if (first, last) == (0, high) else image.crop((0, first, wide, last)))

    return _in_strips(rows, (high, wide), channels, grey)


def _in_strips(
    rows: Callable[[int, int], np.ndarray], size: tuple[int, int], channels: tuple[int, ...], grey: bool
) -> np.ndarray:
    """uint8 [height, width, *channels] of what `rows` gives from one row up to another.

    In strips: whole copies of a large picture in other modes would take a gigabyte.
    """
    high, wide = size
    if wide * high <= _WHOLE:
        return np.ascontiguousarray(rows(0, high), dtype=np.uint8)
    channels, step = () if grey else channels, max(1, _STRIP // wide)
    pixels = np.empty((high, wide, *channels), np.uint8)
    for y in range(0, high, step):
        strip = rows(y, min(y + step, high))
        pixels[y : y + step] = luma(strip) if grey else strip
    return pixels


def _on_black(rgba: np.ndarray) -> np.ndarray:
    """RGB of pixels with transparency, laid on black."""
    rgb, alpha = cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB), cv2.extractChannel(rgba, 3)
    if alpha.min() == 255:
        return rgb
    return cv2.multiply(rgb, cv2.cvtColor(alpha, cv2.COLOR_GRAY2RGB), scale=1 / 255)  # rounded


def _png(grey: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG", compress_level=_PNG_LEVEL)
    return buffer.getvalue()


def luma(pixels: np.ndarray) -> np.ndarray:
    """Grey of a picture, uint8 [height, width]; of RGB the luma of ITU-R BT.601."""
    return pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
