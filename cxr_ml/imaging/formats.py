"""The outside of an image file: what it is, and its bytes without metadata. No pixel is decoded here."""

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_PNG_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
# Frames, tables, scans, restart intervals, the end. Of APP0 and APP14 only what says how colours are coded is kept:
_JPEG_KEPT = {*range(0xC0, 0xD0), *range(0xD9, 0xDE)}
_JFIF = b"JFIF\0\1\1\0\0\1\0\1\0\0"  # without density and thumbnail
_ADOBE = b"Adobe\0\x64\0\0\0\0"  # followed by one byte, the transform
_START_OF_FRAME = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")
_AFTER_SCAN = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # in coded data FF00 is a byte and FFD0-FFD7 are restarts
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
# Hostile files have millions of parts, or thousands of scans, for each of which a decoder passes the whole picture.
_MOST_PARTS, _MOST_SCANS = 65_536, 100

# Magic bytes (offset, bytes) of what people put behind .png and .jpg and what we can name but do not read.
_KNOWN = {
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
            decoded); those of dicom.open_dicom; those of drops.Entry.fault.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Header(NamedTuple):
    """What the first bytes of a file say about it."""

    format: str  # png, jpeg or dicom
    width: int  # px
    height: int  # px
    bits: int  # per sample, as stored


def extension(format: str) -> str:
    """What a picture that came as png, jpeg or dicom is stored as: "png" or "jpeg"."""
    return "png" if format == "dicom" else format


def is_dicom(data: bytes) -> bool:
    """Whether a file is meant as DICOM: by its preamble, or by the first tag where the preamble was left away."""
    return data[128:132] == b"DICM" or (data[:2] in (b"\2\0", b"\x08\0") and data[3:4] == b"\0")


def look(data: bytes) -> Header:
    """Format, size and depth of a PNG or JPEG from its header alone, known by its content whatever its name.

    Raises:
        BadImage: empty_file, not_an_image, unsupported_format, nested_archive, truncated or unreadable.
    """
    if not data:
        raise BadImage("empty_file", "A PNG or JPEG file was expected. Received: no bytes")
    if data.startswith(_PNG):
        if len(data) < 33 or data[12:16] != b"IHDR":
            raise BadImage("truncated", f"A PNG header was expected. Received: {data[:33]!r}")
        width, height, bits = struct.unpack(">IIB", data[16:25])
        header = Header("png", width, height, bits)
    elif data.startswith(_JPEG):
        frame = next((start for marker, start, _ in _jpeg_parts(data) if marker in _START_OF_FRAME), len(data))
        bits, height, width = struct.unpack(">BHH", data[frame + 4 : frame + 9].ljust(5, b"\0"))
        header = Header("jpeg", width, height, bits)
    else:
        for name, (offset, magic) in _KNOWN.items():
            if data[offset : offset + len(magic)] == magic:
                raise BadImage("unsupported_format", f"A PNG or JPEG file was expected. Received: {name}")
        for name, (offset, magic) in _ARCHIVES.items():
            if data[offset : offset + len(magic)] == magic:
                raise BadImage("nested_archive", f"A PNG or JPEG file was expected. Received: a {name} archive")
        raise BadImage("not_an_image", f"A PNG or JPEG file was expected. Received: {data[:16]!r}")
    if not (header.width and header.height):
        raise BadImage("unreadable", f"A picture was expected. Received: {header.width} × {header.height} pixels")
    return header


def clean(data: bytes, format: str) -> bytes:
    """`data` without metadata and without anything after its end; the pixels decode to the same values.

    JPEG loses comments and all APP segments but the JFIF and Adobe headers, which say how colours are coded. Of PNG
    only IHDR, PLTE, tRNS, IDAT and IEND are kept.

    Args:
        data: a whole file.
        format: "png" or "jpeg", as measured.

    Raises:
        BadImage: truncated, animated, rotated or unreadable.
    """
    return _clean_png(data) if format == "png" else _clean_jpeg(data)


def _jpeg_parts(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of every part of a JPEG up to its end; a start of scan carries its coded data."""
    position = 2
    for _ in range(_MOST_PARTS):
        found = _MARKER.match(data, position)
        if not found:
            code = "truncated" if not data[position:].strip(b"\xff") else "unreadable"
            raise BadImage(
                code, f"A JPEG marker was expected at byte {position:,}. Received: {data[position : position + 4]!r}"
            )
        marker, start = found[1][0], found.end() - 2
        if marker == _END_OF_IMAGE:
            yield marker, start, start + 2
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
        yield marker, start, end
        position = end
    raise BadImage("unreadable", f"A JPEG of fewer than {_MOST_PARTS:,} parts was expected. Received: more")


def _clean_jpeg(data: bytes) -> bytes:
    whole = memoryview(data)
    kept, frames, scans = [whole[:2]], 0, 0
    for marker, start, end in _jpeg_parts(data):
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
    if scans > _MOST_SCANS:
        raise BadImage("unreadable", f"A JPEG of at most {_MOST_SCANS} scans was expected. Received: {scans}")
    return b"".join(kept)


def _clean_png(data: bytes) -> bytes:
    whole, kept, position = memoryview(data), [memoryview(_PNG)], len(_PNG)
    for _ in range(_MOST_PARTS):
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
    raise BadImage("unreadable", f"A PNG of fewer than {_MOST_PARTS:,} parts was expected. Received: more")


def _refuse_rotated(exif: bytes) -> None:
    found = Image.Exif()
    try:
        found.load(exif)
        orientation = found.get(0x0112, 1)
    except Exception:  # EXIF that cannot be parsed turns no viewer's picture either
        return
    if orientation not in (0, 1):
        raise BadImage("rotated", f"A picture stored upright was expected. Received: EXIF orientation {orientation}")
