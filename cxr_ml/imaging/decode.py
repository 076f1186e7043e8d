"""Decodes one image file once, after its header was read and the limits were checked."""

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

from cxr_ml.imaging.formats import BadImage, Header, is_dicom, read_header, strip_metadata
from cxr_ml.settings import ImageSettings

MEASURED_SIDE = 384  # px, longest side of a picture that is measured, but see `shrink`
_MAX_WHOLE = 1 << 21  # px; larger pictures are converted in strips
_STRIP_PIXELS = 1 << 19
_PNG_LEVEL = 4


class DecodedImage(NamedTuple):
    """A file whose header was read and whose picture was decoded."""

    format: str  # png, jpeg or dicom; see `formats.stored_format`
    mode: str  # Pillow's; of DICOM the photometric interpretation
    bits: int  # per sample, as stored in the file
    width: int  # px, of the picture in the file
    height: int  # px
    pixels: np.ndarray  # uint8 [height, width] or [height, width, RGB]
    clean: bytes  # what is stored: the file without metadata; of DICOM the picture as a grey PNG of 8 bits

    @property
    def is_full_size(self) -> bool:
        """Whether the pixels are all of the file's, not those of a reduced decode."""
        return self.pixels.shape[:2] == (self.height, self.width)


class ShrinkGrid(NamedTuple):
    """The squares over which `shrink` averages."""

    factor: int  # px, side of a square
    rows: int
    columns: int


def decode_image(data: bytes, settings: ImageSettings, side: int | None = None) -> DecodedImage:
    """Decodes a PNG, JPEG or DICOM file. Limits are checked before any pixel is decoded.

    A picture of 50 million pixels takes at most 600 MB while it is decoded (CMYK, progressive), a grey one 250 MB.

    Args:
        data: a whole file.
        settings: max_file_bytes, max_pixels.
        side: px, if the picture is only needed for `shrink` to this side: a JPEG is then decoded at 1/2, 1/4 or 1/8
            of its size, never smaller than `shrink` would make it. All its coded data are read nevertheless, so damage
            is found as in a full decode.

    Raises:
        BadImage: with the reason as its code.
    """
    if len(data) > settings.max_file_bytes:
        raise BadImage(
            "too_large",
            f"A file of at most {settings.max_file_bytes:,} bytes was expected. Received: {len(data):,} bytes",
        )
    if is_dicom(data):
        from cxr_ml.imaging.dicom import decode_dicom  # pydicom takes 0.2 s to import

        header, mode, pixels = decode_dicom(data, settings)
        return DecodedImage(header.format, mode, header.bits, header.width, header.height, pixels, _encode_png(pixels))
    header = read_header(data)
    if header.width * header.height > settings.max_pixels:
        raise BadImage(
            "too_many_pixels",
            f"At most {settings.max_pixels:,} pixels were expected. Received: {header.width} × {header.height}",
        )
    clean = strip_metadata(data, header.format)
    mode, pixels = _decode(clean, header, side)
    return DecodedImage(header.format, mode, header.bits, header.width, header.height, pixels, clean)


def decode_grey(data: bytes) -> np.ndarray:
    """Decodes a stored image to grey, uint8 [height, width], in its full size.

    Colour becomes luma (ITU-R BT.601). Transparent pixels are shown on black. Grey of 16 bits is divided by the power
    of two that brings its highest value below 256, so 10-, 12- and 14-bit data in 16-bit files keep their contrast;
    16-bit colour keeps the high byte.

    Raises:
        BadImage: not a PNG or JPEG, or damaged.
    """
    header = read_header(data)
    return to_grey(_decode(strip_metadata(data, header.format), header, grey=True).pixels)


def shrink(pixels: np.ndarray, side: int) -> np.ndarray:
    """Averages the picture over squares of k × k px, with the smallest k for which no side is longer than `side`.

    A picture that is longer by up to a third is left as it is: halved, it would lose too much. Whole squares are
    several times as fast as any other factor; up to k - 1 px at the right and the bottom are cut off.
    """
    factor, rows, columns = shrink_grid(pixels.shape[0], pixels.shape[1], side)
    if factor == 1:
        return pixels
    return cv2.resize(pixels[: rows * factor, : columns * factor], (columns, rows), interpolation=cv2.INTER_AREA)


def shrink_grid(height: int, width: int, side: int) -> ShrinkGrid:
    """Returns the squares over which `shrink` averages.

    Example:
        >>> shrink_grid(1000, 800, side=384)
        ShrinkGrid(factor=3, rows=333, columns=266)
        >>> shrink_grid(512, 512, side=384)
        ShrinkGrid(factor=1, rows=512, columns=512)
    """
    longest = max(height, width)
    factor = 1 if 3 * longest <= 4 * side else -(-longest // side)
    return ShrinkGrid(factor, max(1, height // factor), max(1, width // factor))


class _Picture(NamedTuple):
    mode: str  # Pillow's
    pixels: np.ndarray  # uint8 [height, width] or [height, width, RGB]


def _decode(clean: bytes, header: Header, side: int | None = None, grey: bool = False) -> _Picture:
    """Decodes a file without metadata.

    Args:
        clean: the file.
        header: of the file.
        side: as for `decode_image`.
        grey: whether the pixels are to become grey strip by strip, because no colour is needed.
    """
    picture = None
    if header.format == "jpeg":
        picture = _decode_plain_jpeg(clean, header, side)
    elif not grey:
        picture = _decode_plain_png(clean, header)
    return picture or _decode_with_pillow(clean, header, side, grey)


def _decode_with_pillow(clean: bytes, header: Header, side: int | None, grey: bool) -> _Picture:
    try:
        with Image.open(io.BytesIO(clean), formats=(header.format.upper(),)) as image:
            if image.size != (header.width, header.height):
                raise BadImage(
                    "unreadable", f"{header.width} × {header.height} pixels were expected. Received: {image.size}"
                )
            if side and image.mode == "CMYK":  # of JPEG only
                divisor = _jpeg_divisor(header.height, header.width, side)
                image.draft(image.mode, (header.width // divisor, header.height // divisor))
            image.load()
            return _Picture(image.mode, _to_pixels(image, grey))
    except Image.DecompressionBombError as error:
        raise BadImage(
            "too_many_pixels", f"A picture of a size that Pillow decodes was expected. Received: {error}"
        ) from None
    except (OSError, ValueError, SyntaxError, struct.error, zlib.error, IndexError) as error:
        code = "truncated" if "truncated" in str(error) else "unreadable"
        raise BadImage(code, f"A sound {header.format.upper()} was expected. Received: {error}") from None


def _jpeg_divisor(height: int, width: int, side: int | None) -> int:
    """The largest of libjpeg's divisors that leaves the picture no smaller than `shrink` makes it."""
    factor = shrink_grid(height, width, side).factor if side else 1
    return next(divisor for divisor in (8, 4, 2, 1) if divisor <= factor)


def _decode_plain_jpeg(clean: bytes, header: Header, side: int | None) -> _Picture | None:
    """Decodes a JPEG as Pillow does, with the same library in half the time; None where Pillow has to decide."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(clean)
        if (width, height, header.bits) != (header.width, header.height, 8) or colours not in ("Gray", "YCbCr"):
            return None
        divisor = _jpeg_divisor(height, width, side)
        reduced = {} if divisor == 1 else {"min_height": -(-height // divisor), "min_width": -(-width // divisor)}
        # The slower algorithms are Pillow's defaults. `strict` turns warnings into errors, so that Pillow decides.
        colorspace = "GRAY" if colours == "Gray" else "RGB"
        pixels = simplejpeg.decode_jpeg(clean, colorspace, fastdct=False, fastupsample=False, strict=True, **reduced)
    except ValueError:
        return None
    return _Picture("L", pixels[..., 0]) if colours == "Gray" else _Picture("RGB", pixels)


def _decode_plain_png(clean: bytes, header: Header) -> _Picture | None:
    """Decodes a PNG as Pillow does, in less than half the time; None where Pillow has to decide.

    Only 8 bits of grey, RGB or RGBA, without a palette or a transparent colour. A wrong Adler-32 behind right CRCs is
    not noticed. The interpreter's lock is held meanwhile, so this suits processes that decode one file at a time.
    """
    modes = {0: ("L", "mono"), 2: ("RGB", "rgb"), 6: ("RGBA", "rgba")}.get(clean[25])
    if not modes or header.bits != 8 or clean[37:41] != b"IDAT" or b"tRNS" in clean:
        return None
    mode, kornia_mode = modes
    try:
        pixels = kornia_rs.io.decode_image_png_u8(clean, (header.height, header.width), kornia_mode)
    except BaseException as error:  # plain Exceptions, and those of Rust where the decoder is at fault
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        return None
    if mode == "L":
        return _Picture(mode, pixels[..., 0])
    if mode == "RGBA":
        rgba, size = pixels, (header.height, header.width)
        pixels = _convert_in_strips(lambda first, last: _blend_on_black(rgba[first:last]), size, (3,), grey=False)
    return _Picture(mode, pixels)


def _to_pixels(image: Image.Image, grey: bool) -> np.ndarray:
    """Pixels of a loaded picture, uint8 [height, width] or [height, width, RGB]."""
    width, height = image.size
    channels: tuple[int, ...] = (3,)
    if image.mode.startswith("I"):
        shift = max(0, int(image.getextrema()[1]).bit_length() - 8)  # type: ignore[arg-type]  # one channel: two numbers
        channels = ()

        def convert(part: Image.Image) -> np.ndarray:
            return np.asarray(part) >> shift
    elif image.has_transparency_data:

        def convert(part: Image.Image) -> np.ndarray:
            return _blend_on_black(np.asarray(part if part.mode == "RGBA" else part.convert("RGBA")))
    else:
        mode = "L" if image.mode in ("L", "1") else "RGB"
        channels = () if mode == "L" else (3,)

        def convert(part: Image.Image) -> np.ndarray:
            return np.asarray(part if part.mode == mode else part.convert(mode))

    def convert_rows(first: int, last: int) -> np.ndarray:
        return convert(image if (first, last) == (0, height) else image.crop((0, first, width, last)))

    return _convert_in_strips(convert_rows, (height, width), channels, grey)


def _convert_in_strips(
    convert_rows: Callable[[int, int], np.ndarray], size: tuple[int, int], channels: tuple[int, ...], grey: bool
) -> np.ndarray:
    """uint8 [height, width, *channels] of what `convert_rows` gives from one row up to another.

    Whole copies of a large picture in other modes would take a gigabyte.
    """
    height, width = size
    if width * height <= _MAX_WHOLE:
        return np.ascontiguousarray(convert_rows(0, height), dtype=np.uint8)
    channels, step = () if grey else channels, max(1, _STRIP_PIXELS // width)
    pixels = np.empty((height, width, *channels), np.uint8)
    for y in range(0, height, step):
        strip = convert_rows(y, min(y + step, height))
        pixels[y : y + step] = to_grey(strip) if grey else strip
    return pixels


def _blend_on_black(rgba: np.ndarray) -> np.ndarray:
    """RGB of pixels with transparency, on black."""
    rgb, alpha = cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB), cv2.extractChannel(rgba, 3)
    if alpha.min() == 255:
        return rgb
    return cv2.multiply(rgb, cv2.cvtColor(alpha, cv2.COLOR_GRAY2RGB), scale=1 / 255)  # rounded


def _encode_png(grey: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG", compress_level=_PNG_LEVEL)
    return buffer.getvalue()


def to_grey(pixels: np.ndarray) -> np.ndarray:
    """Returns the picture in grey, uint8 [height, width]; of RGB the luma of ITU-R BT.601."""
    return pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
