"""One DICOM file: what its header says, and its picture as a workstation shows it. Nothing else of it is handed on."""

import io
import logging
import warnings
import zlib
from typing import NamedTuple

import numpy as np
import pydicom
from pydicom.pixels import apply_modality_lut, apply_voi, get_decoder
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from cxr_ml.imaging.formats import BadImage, Header
from cxr_ml.settings import Settings

# What pydicom complains of quotes the header, and would carry names of patients into logs.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module="pydicom")

_STRIP = 1 << 20  # px that are worked on at once
_INFLATED = 128_000_000  # bytes that a deflated file may have
_PEOPLE = (
    "PatientID", "PatientName", "OtherPatientIDs", "OtherPatientNames", "PatientBirthName", "PatientBirthDate",
)  # fmt: skip
_LONGEST, _MOST = 256, 100  # characters of such a text (PS3.5 table 6.2-1 allows 64, of a name 195), values of one
# Defined terms of (0018,5101), PS3.3 C.8.7.1.1 and C.8.11.5; free text there could name somebody.
_VIEWS = {"AP", "PA", "LL", "RL", "RLD", "LLD", "RLO", "LLO", "LAT", "LATERAL"}


class Facts(NamedTuple):
    """What a header says of whose picture it is, for as long as it takes to replace it."""

    patients: tuple[str, ...]  # what may name the patient, best first: PatientID, PatientName
    names: tuple[str, ...]  # every text of the header by which the patient could be found
    accession: str  # number of the examination, by which the patient could be found too
    view: str  # a defined term, or ""


def facts(data: bytes) -> Facts:
    """Identity and view from the header; all empty where it cannot be read."""
    try:
        header = _parse(data, stop_before_pixels=True)
        texts = []
        for keyword in (*_PEOPLE, "AccessionNumber"):
            value = header.get(keyword) or ""
            values = value if isinstance(value, pydicom.multival.MultiValue | list) else [value]
            texts.append([text for text in (str(v).strip(" \0^")[:_LONGEST] for v in values[:_MOST]) if text])
        view = str(header.get("ViewPosition") or "").strip().upper()
    except Exception:  # the same file is refused with a reason when its picture is asked for
        return Facts((), (), "", "")
    patients, names = ([text for found in some for text in found] for some in (texts[:2], texts[:-1]))
    return Facts(tuple(patients), tuple(names), next(iter(texts[-1]), ""), view if view in _VIEWS else "")


def pixels(data: bytes) -> int:
    """How many pixels the header promises; 0 where it cannot be read."""
    try:
        header = _parse(data, stop_before_pixels=True)
        return int(header.Rows) * int(header.Columns)
    except Exception:  # the same file is refused with a reason when its picture is asked for
        return 0


def open_dicom(data: bytes, settings: Settings) -> tuple[Header, str, np.ndarray]:
    """The picture of a DICOM file, ready for display.

    Modality rescale or LUT, then VOI LUT or window, are applied (PS3.3 C.11.1, C.11.2), MONOCHROME1 is inverted, and
    the result runs from 0 to 255. Without a VOI the values that occur are spread over that range. Padding is black.
    The limits of settings are checked on the header, before any pixel is decoded.

    Returns:
        Header (bits: as allocated in the file), photometric interpretation, uint8 [height, width]

    Raises:
        BadImage: not_an_image (DICOM without a picture), multi_frame, burned_in_annotation, for_processing,
            too_many_pixels, unsupported_photometric, unsupported_depth, unsupported_syntax, truncated or unreadable.
    """
    try:
        header = _parse(data)
        found = _look(header, settings)
        photometric = str(header.PhotometricInterpretation)
        patterns = _decode(header, found)
        table = _display(header, _occurring(patterns, header.BitsStored))
    except BadImage:
        raise
    except Exception as error:  # pydicom and its decoders raise anything on a hostile file
        raise BadImage("unreadable", f"A sound DICOM file was expected. Received: {error}") from None
    grey = np.empty(patterns.shape, np.uint8)
    for rows in _strips(patterns):
        grey[rows] = table[_pattern(patterns[rows], header.BitsStored)]
    return found, photometric, grey


def _parse(data: bytes, **options: bool) -> pydicom.Dataset:
    # pydicom would inflate a deflated file whole, whatever its size.
    if DeflatedExplicitVRLittleEndian.encode() in data:
        data = _inflated(data)
    return pydicom.dcmread(io.BytesIO(data), force=True, **options)


def _inflated(data: bytes) -> bytes:
    """The elements behind the meta header of a deflated file (PS3.5 A.5), as a file without one."""
    start = 144 + int.from_bytes(data[140:144], "little")
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    found = inflate.decompress(data[start:], _INFLATED) if data[132:140] == b"\2\0\0\0UL\4\0" else b""
    if not found or inflate.unconsumed_tail or DeflatedExplicitVRLittleEndian.encode() in found:
        raise BadImage(
            "unreadable", f"A deflated DICOM file of at most {_INFLATED:,} bytes was expected. Received: another"
        )
    return found


def _look(header: pydicom.Dataset, settings: Settings) -> Header:
    if "Rows" not in header or "Columns" not in header:
        raise BadImage("not_an_image", "A DICOM file with a picture was expected. Received: one without rows")
    if int(header.get("NumberOfFrames") or 1) != 1:
        raise BadImage("multi_frame", f"One frame was expected. Received: {header.NumberOfFrames}")
    if str(header.get("BurnedInAnnotation") or "").strip().upper() == "YES":
        raise BadImage("burned_in_annotation", "A picture without writing in it was expected. Received: one with")
    if str(header.get("PresentationIntentType") or "").strip().upper() == "FOR PROCESSING":
        raise BadImage("for_processing", "A picture for presentation was expected. Received: raw data of a detector")
    height, width = int(header.Rows), int(header.Columns)
    if height * width > settings.max_pixels:
        raise BadImage(
            "too_many_pixels", f"At most {settings.max_pixels:,} pixels were expected. Received: {width} × {height}"
        )
    photometric = header.get("PhotometricInterpretation")
    if photometric not in ("MONOCHROME1", "MONOCHROME2") or header.get("SamplesPerPixel", 1) != 1:
        raise BadImage("unsupported_photometric", f"Grey of one sample per pixel was expected. Received: {photometric}")
    allocated, stored = header.get("BitsAllocated"), header.get("BitsStored")
    sound = allocated in (8, 16) and isinstance(stored, int) and 1 < stored <= allocated
    if not sound or header.get("HighBit", stored - 1) != stored - 1 or header.get("PixelRepresentation") not in (0, 1):
        raise BadImage("unsupported_depth", f"8 or 16 bits per pixel were expected. Received: {stored} of {allocated}")
    if "PixelData" not in header:
        raise BadImage("truncated", "Pixels were expected. Received: a header without them")
    if not (height and width):
        raise BadImage("unreadable", f"A picture was expected. Received: {width} × {height} pixels")
    return Header("dicom", width, height, allocated)


def _decode(header: pydicom.Dataset, found: Header) -> np.ndarray:
    """Pixels as stored, uint or int of 8 or 16 bits [height, width]."""
    if "TransferSyntaxUID" not in header.file_meta:
        implicit, little = header.original_encoding
        uid = "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1" if little else "1.2.840.10008.1.2.2"
        header.file_meta.TransferSyntaxUID = pydicom.uid.UID(uid)
    syntax = header.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise BadImage("unsupported_syntax", f"A syntax of pictures was expected. Received: {syntax}") from None
    if not decoder.is_available:
        raise BadImage("unsupported_syntax", f"A syntax that is read here was expected. Received: {syntax}")
    expected = found.width * found.height * found.bits // 8
    if syntax.is_encapsulated:
        _check_frame(header.PixelData, syntax, found, expected)
    elif len(header.PixelData) < expected:
        raise BadImage("truncated", f"{expected:,} bytes of pixels were expected. Received: {len(header.PixelData):,}")
    pixels, _ = decoder.as_array(header, index=0)
    if pixels.shape != (found.height, found.width) or pixels.dtype.itemsize > 2:
        raise BadImage("unreadable", f"{found.width} × {found.height} pixels were expected. Received: {pixels.shape}")
    return pixels


def _check_frame(pixels: bytes, syntax: pydicom.uid.UID, found: Header, expected: int) -> None:
    """Refuses a compressed picture larger than the header says, before a decoder makes room for it."""
    frames = list(pydicom.encaps.generate_frames(pixels, number_of_frames=1))
    if len(frames) != 1 or not frames[0]:
        raise BadImage("truncated", f"One compressed frame was expected. Received: {len(frames)}")
    frame = frames[0]
    if syntax == RLELossless:
        sizes = [_rle_size(s, expected) for s in _rle_segments(frame)]
        if sum(sizes) > expected + len(sizes):
            raise BadImage("unreadable", f"{expected:,} bytes of pixels were expected. Received: more")
        if sum(sizes) < expected:
            raise BadImage("truncated", f"{expected:,} bytes of pixels were expected. Received: {sum(sizes):,}")
        return
    size = _codestream_size(frame)
    if size != (found.width, found.height):
        raise BadImage("unreadable", f"{found.width} × {found.height} pixels were expected. Received: {size}")


def _rle_segments(frame: bytes) -> list[bytes]:
    count = int.from_bytes(frame[:4], "little")
    starts = [int.from_bytes(frame[4 * i : 4 * i + 4], "little") for i in range(1, min(count, 15) + 1)]
    return [frame[a:b] for a, b in zip(starts, [*starts[1:], len(frame)], strict=True)]


def _rle_size(segment: bytes, limit: int) -> int:
    """Bytes that a run-length segment unpacks to (PS3.5 annex G.3); the count ends just above `limit`."""
    at, size = 0, 0
    while at < len(segment) - 1 and size <= limit:
        code = segment[at]
        if code < 128:
            size, at = size + min(code + 1, len(segment) - at - 1), at + code + 2
        else:
            size, at = size + (257 - code if code > 128 else 0), at + (2 if code > 128 else 1)
    return size


def _codestream_size(frame: bytes) -> tuple[int, int]:
    """(width, height) that a JPEG, JPEG-LS or JPEG 2000 codestream says of itself; (0, 0) where it says nothing."""
    start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)  # SOC and SIZ of JPEG 2000
    if start >= 0:
        right, bottom, left, top = (int.from_bytes(frame[start + i : start + i + 4], "big") for i in (8, 12, 16, 20))
        return right - left, bottom - top
    at = 2
    while frame[at : at + 1] == b"\xff" and at + 9 <= len(frame):
        marker = frame[at + 1]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return int.from_bytes(frame[at + 7 : at + 9], "big"), int.from_bytes(frame[at + 5 : at + 7], "big")
        at += 1 if marker == 0xFF else 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return 0, 0


def _strips(pixels: np.ndarray) -> list[slice]:
    rows = max(1, _STRIP // pixels.shape[1])
    return [slice(y, y + rows) for y in range(0, pixels.shape[0], rows)]


def _pattern(pixels: np.ndarray, bits: int) -> np.ndarray:
    """The stored bits of each pixel as an index; what lies above them (overlays of old files) is left away."""
    return pixels.astype(np.int32) & ((1 << bits) - 1)


def _occurring(pixels: np.ndarray, bits: int) -> np.ndarray:
    """Which of the 2^bits patterns occur, bool [2^bits]."""
    found = np.zeros(1 << bits, bool)
    for rows in _strips(pixels):
        found[_pattern(pixels[rows], bits)] = True
    return found


def _display(header: pydicom.Dataset, occurring: np.ndarray) -> np.ndarray:
    """The grey level that each pattern of stored bits is shown as, uint8 [2^bits]."""
    stored = np.arange(len(occurring))
    if header.PixelRepresentation:
        stored = np.where(stored < len(stored) // 2, stored, stored - len(stored))
    padding = _padding(header, stored)
    values = np.asarray(apply_modality_lut(stored, header), np.float64)
    if not np.isfinite(values).all():
        raise BadImage("unreadable", "A finite rescale was expected. Received: a slope or intercept without end")
    if header.get("VOILUTSequence"):
        shares = apply_voi(np.rint(values).astype(np.int64), header) / (
            (1 << _first(header.VOILUTSequence[0].LUTDescriptor, 2)) - 1
        )
    elif header.get("WindowCenter") is not None and header.get("WindowWidth") is not None:
        shares = _window(values, header)
    else:
        used = values[occurring & ~padding]
        low, high = (used.min(), used.max()) if len(used) else (0.0, 1.0)
        shares = (values - low) / max(high - low, 1e-9)
    shares = np.clip(shares, 0, 1)
    if header.PhotometricInterpretation == "MONOCHROME1":
        shares = 1 - shares
    return np.where(padding, 0, np.rint(shares * 255)).astype(np.uint8)


def _window(values: np.ndarray, header: pydicom.Dataset) -> np.ndarray:
    """Share of white by the first window of the header (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
    centre, width = float(_first(header.WindowCenter)), float(_first(header.WindowWidth))
    way = str(header.get("VOILUTFunction") or "LINEAR").strip().upper()
    if not (np.isfinite(centre) and np.isfinite(width)) or width < (1 if way == "LINEAR" else 1e-9):
        raise BadImage("unreadable", f"A window with a width was expected. Received: centre {centre}, width {width}")
    if way == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    if way == "LINEAR_EXACT":
        return (values - centre) / width + 0.5
    return (values - (centre - 0.5)) / max(width - 1, 1e-9) + 0.5


def _padding(header: pydicom.Dataset, stored: np.ndarray) -> np.ndarray:
    """Which stored values only fill the frame up to a rectangle (PS3.3 C.7.5.1.1.2), bool."""
    value = header.get("PixelPaddingValue")
    if value is None:
        return np.zeros(len(stored), bool)
    other = header.get("PixelPaddingRangeLimit", value)
    # Either is kept as a pattern of bits, and some writers take the wrong sign.
    low, high = sorted((_as_stored(int(value), stored), _as_stored(int(other), stored)))
    return (stored >= low) & (stored <= high)


def _as_stored(value: int, stored: np.ndarray) -> int:
    if stored.min() < 0 <= stored.max() < value:
        return value - 65_536
    return value & 0xFFFF if stored.min() == 0 and value < 0 else value


def _first(value: object, at: int = 0) -> object:
    return value[at] if isinstance(value, pydicom.multival.MultiValue | list) else value
