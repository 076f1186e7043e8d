"""Formats of image files: reads the header and strips the metadata. No pixel is decoded here."""

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_PNG_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
# Frames, tables, scans, restart intervals, the end. Of APP0 and APP14 only the coding of colours is kept:
_JPEG_KEPT = {*range(0xC0, 0xD0), *range(0xD9, 0xDE)}
_JFIF = b"JFIF\0\1\1\0\0\1\0\1\0\0"  # without density and thumbnail
_ADOBE = b"Adobe\0\x64\0\0\0\0"  # followed by one byte, the transform
_START_OF_FRAME = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")
_AFTER_SCAN = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # in coded data FF00 is a byte and FFD0-FFD7 are restarts
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
# Hostile files have millions of segments, or thousands of scans, each of which costs a decoder the whole picture.
_MAX_SEGMENTS, _MAX_SCANS = 65_536, 100

# Magic bytes (offset, bytes) of formats that are named but not read; people put them behind .png and .jpg.
_OTHER_FORMATS = {
    "GIF": (0, b"GIF8"),
    "BMP": (0, b"BM"),
    "TIFF": (0, b"II*\x00"),
    "TIFF (big-endian)": (0, b"MM\x00*"),
    "WebP": (8, b"WEBP"),
    "JPEG 2000": (4, b"jP  "),
    "HEIF or AVIF": (4, b"ftyp"),
}
_ARCHIVES = {
    "ZIP": (0, b"PK\3\4"),
    "gzip": (0, b"\x1f\x8b"),
    "tar": (257, b"ustar"),
    "7z": (0, b"7z\xbc\xaf\x27\x1c"),
    "RAR": (0, b"Rar!\x1a\7"),
    "xz": (0, b"\xfd7zXZ\0"),
    "bzip2": (0, b"BZh"),
}


class BadImage(Exception):
    """A file that cannot be used as an image.

    Attributes:
        code: empty_file, too_large, not_an_image, unsupported_format, nested_archive, too_many_pixels, truncated,
            animated, rotated (EXIF asks for a turn that cleaning would lose) or unreadable (damaged, or cannot be
            decoded); those of dicom.decode_dicom; those of drop_index.Entry.fault.
    """

    def __init__(self, code: str, message: str) -> None:
        """Takes the reason and, for people, what was expected and what was received."""
        super().__init__(message)
        self.code = code


class Header(NamedTuple):
    """Format, size and depth of a picture, as its file declares them."""

    format: str  # png, jpeg or dicom
    width: int  # px
    height: int  # px
    bits: int  # per sample, as stored


class _Segment(NamedTuple):
    """One segment of a JPEG; a start of scan includes its coded data."""

    marker: int
    start: int  # byte of the marker
    end: int  # byte after the last


def stored_format(format: str) -> str:
    """Returns the format that a png, jpeg or dicom is stored in, also its extension: "png" or "jpeg"."""
    return "png" if format == "dicom" else format


def is_dicom(data: bytes) -> bool:
    """Returns whether a file is DICOM, by its preamble or, where it has none, by its first tag."""
    return data[128:132] == b"DICM" or (data[:2] in (b"\2\0", b"\x08\0") and data[3:4] == b"\0")


def read_header(data: bytes) -> Header:
    """Reads format, size and depth of a PNG or JPEG from its header alone; the name of the file plays no part.

    Raises:
        BadImage: empty_file, not_an_image, unsupported_format, nested_archive, truncated or unreadable.

    Example:
        >>> import io
        >>> file = io.BytesIO()
        >>> Image.new("L", (640, 480)).save(file, "PNG")
        >>> read_header(file.getvalue())
        Header(format='png', width=640, height=480, bits=8)
    """
    if not data:
        raise BadImage("empty_file", "A PNG or JPEG file was expected. Received: no bytes")
    if data.startswith(_PNG):
        if len(data) < 33 or data[12:16] != b"IHDR":
            raise BadImage("truncated", f"A PNG header was expected. Received: {data[:33]!r}")
        width, height, bits = struct.unpack(">IIB", data[16:25])
        header = Header("png", width, height, bits)
    elif data.startswith(_JPEG):
        frame = next((s.start for s in _jpeg_segments(data) if s.marker in _START_OF_FRAME), len(data))
        bits, height, width = struct.unpack(">BHH", data[frame + 4 : frame + 9].ljust(5, b"\0"))
        header = Header("jpeg", width, height, bits)
    else:
        for name, (offset, magic) in _OTHER_FORMATS.items():
            if data[offset : offset + len(magic)] == magic:
                raise BadImage("unsupported_format", f"A PNG or JPEG file was expected. Received: {name}")
        for name, (offset, magic) in _ARCHIVES.items():
            if data[offset : offset + len(magic)] == magic:
                raise BadImage("nested_archive", f"A PNG or JPEG file was expected. Received: a {name} archive")
        raise BadImage("not_an_image", f"A PNG or JPEG file was expected. Received: {data[:16]!r}")
    if not (header.width and header.height):
        raise BadImage("unreadable", f"A picture was expected. Received: {header.width} × {header.height} pixels")
    return header


def strip_metadata(data: bytes, format: str) -> bytes:
    """Returns the file without metadata and without anything after its end; the pixels decode to the same values.

    A JPEG loses comments and all APP segments but the JFIF and Adobe headers, which tell how colours are coded. Of a
    PNG only IHDR, PLTE, tRNS, IDAT and IEND are kept.

    Args:
        data: a whole file.
        format: "png" or "jpeg".

    Raises:
        BadImage: truncated, animated, rotated or unreadable.
    """
    return _strip_png(data) if format == "png" else _strip_jpeg(data)


def _jpeg_segments(data: bytes) -> Iterator[_Segment]:
    """Every segment of a JPEG up to its end."""
    position = 2
    for _ in range(_MAX_SEGMENTS):
        match = _MARKER.match(data, position)
        if not match:
            code = "truncated" if not data[position:].strip(b"\xff") else "unreadable"
            raise BadImage(
                code, f"A JPEG marker was expected at byte {position:,}. Received: {data[position : position + 4]!r}"
            )
        marker, start = match[1][0], match.end() - 2
        if marker == _END_OF_IMAGE:
            yield _Segment(marker, start, start + 2)
            return
        length = int.from_bytes(data[start + 2 : start + 4], "big")
        end = start + 2 + length
        if end > len(data) or length < 2:
            raise BadImage(
                "truncated", f"{length:,} bytes were expected after byte {start:,}. Received: {len(data):,} in all"
            )
        if marker == _START_OF_SCAN:
            following = _AFTER_SCAN.search(data, end)
            if not following:
                raise BadImage(
                    "truncated", f"The end of the JPEG was expected. Received: {len(data):,} bytes without it"
                )
            end, header = following.start(), end
            while end > header and data[end - 1] == 0xFF:  # fill bytes belong to the marker
                end -= 1
        yield _Segment(marker, start, end)
        position = end
    raise BadImage("unreadable", f"A JPEG of fewer than {_MAX_SEGMENTS:,} segments was expected. Received: more")


def _strip_jpeg(data: bytes) -> bytes:
    whole = memoryview(data)
    kept, frames, scans = [whole[:2]], 0, 0
    for marker, start, end in _jpeg_segments(data):
        frames += marker in _START_OF_FRAME
        scans += marker == _START_OF_SCAN
        payload = data[start + 4 : min(end, start + 16)]
        if marker in _JPEG_KEPT:
            kept.append(whole[start:end])
        elif marker == 0xE0 and payload.startswith(b"JFIF\0"):
            kept.append(memoryview(b"\xff\xe0\0\x10" + _JFIF))
        elif marker == 0xEE and payload.startswith(b"Adobe") and len(payload) == 12:
            kept.append(memoryview(b"\xff\xee\0\x0e" + _ADOBE + payload[11:]))
        elif marker == 0xE1 and payload.startswith(b"Exif\0\0"):
            _refuse_rotated(data[start + 4 : end])
    if frames != 1:
        raise BadImage("unreadable", f"A JPEG with one frame was expected. Received: {frames}")
    if scans > _MAX_SCANS:
        raise BadImage("unreadable", f"A JPEG of at most {_MAX_SCANS} scans was expected. Received: {scans}")
    return b"".join(kept)


def _strip_png(data: bytes) -> bytes:
    whole, kept, position = memoryview(data), [memoryview(_PNG)], len(_PNG)
    for _ in range(_MAX_SEGMENTS):
        length, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        end = position + 12 + length
        if end > len(data):
            raise BadImage("truncated", f"{end:,} bytes of PNG were expected. Received: {len(data):,}")
        if kind == b"acTL":
            raise BadImage("animated", "A single picture was expected. Received: an animated PNG")
        if kind == b"eXIf":
            _refuse_rotated(b"Exif\0\0" + data[position + 8 : end - 4])
        if kind in _PNG_KEPT:
            if kind == b"IHDR" and len(kept) > 1:
                raise BadImage("unreadable", "A PNG with one header was expected. Received: another one")
            if zlib.crc32(whole[position + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
                raise BadImage(
                    "unreadable", f"A sound PNG was expected. Received: a wrong checksum at byte {position:,}"
                )
            kept.append(whole[position:end])
        if kind == b"IEND":
            return b"".join(kept)
        position = end
    raise BadImage("unreadable", f"A PNG of fewer than {_MAX_SEGMENTS:,} chunks was expected. Received: more")


def _refuse_rotated(exif: bytes) -> None:
    tags = Image.Exif()
    try:
        tags.load(exif)
        orientation = tags.get(0x0112, 1)
    except Exception:  # viewers do not turn a picture either whose EXIF cannot be parsed
        return
    if orientation not in (0, 1):
        raise BadImage("rotated", f"A picture stored upright was expected. Received: EXIF orientation {orientation}")
