"""DICOM files: the identity in the header, and the picture as a workstation shows it. Nothing else is handed on."""

import io
import itertools
import logging
import struct
import warnings
import zlib
from typing import Any, NamedTuple

import numpy as np
import pydicom
from pydicom.pixels import apply_modality_lut, apply_voi, get_decoder
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from cxr_ml.imaging.formats import BadImage, Header
from cxr_ml.settings import ImageSettings

# pydicom's warnings quote the header and would put names of patients into logs.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module="pydicom")

_STRIP_PIXELS = 1 << 20  # that are converted at once
_MAX_INFLATED = 128_000_000  # bytes of a deflated file
_PATIENT_TAGS = (
    "PatientID", "PatientName", "OtherPatientIDs", "OtherPatientNames", "PatientBirthName", "PatientBirthDate",
)  # fmt: skip
_MAX_CHARACTERS = 256  # of such a text; PS3.5 table 6.2-1 allows 64, of a name 195
_MAX_VALUES = 100  # of a tag
# Defined terms of (0018,5101), PS3.3 C.8.7.1.1 and C.8.11.5; free text there could name somebody.
_VIEWS = {"AP", "PA", "LL", "RL", "RLD", "LLD", "RLO", "LLO", "LAT", "LATERAL"}


class Identity(NamedTuple):
    """Whose picture it is by the header, kept only until it is replaced."""

    patients: tuple[str, ...]  # values that may identify the patient, best first: PatientID, PatientName
    names: tuple[str, ...]  # every text of the header by which the patient could be found
    accession: str  # number of the examination, by which the patient could be found too
    view: str  # a defined term, or ""


class DicomImage(NamedTuple):
    """A decoded DICOM file."""

    header: Header  # bits: as allocated in the file
    photometric: str  # photometric interpretation
    grey: np.ndarray  # uint8 [height, width]


def read_identity(data: bytes) -> Identity:
    """Reads identity and view from the header; all are empty where it cannot be read."""
    try:
        header = _parse(data, stop_before_pixels=True)
        texts = []
        for keyword in (*_PATIENT_TAGS, "AccessionNumber"):
            value = header.get(keyword) or ""
            values = value if isinstance(value, pydicom.multival.MultiValue | list) else [value]
            stripped = (str(v).strip(" \0^")[:_MAX_CHARACTERS] for v in values[:_MAX_VALUES])
            texts.append([text for text in stripped if text])
        view = str(header.get("ViewPosition") or "").strip().upper()
    except Exception:  # decoding the same file is refused with a reason
        return Identity((), (), "", "")
    patients, names = (tuple(itertools.chain.from_iterable(group)) for group in (texts[:2], texts[:-1]))
    return Identity(patients, names, next(iter(texts[-1]), ""), view if view in _VIEWS else "")


def count_pixels(data: bytes) -> int:
    """Returns how many pixels the header declares; 0 where it cannot be read."""
    try:
        header = _parse(data, stop_before_pixels=True)
        return int(header.Rows) * int(header.Columns)
    except Exception:  # decoding the same file is refused with a reason
        return 0


def decode_dicom(data: bytes, settings: ImageSettings) -> DicomImage:
    """Decodes the picture of a DICOM file, ready for display.

    Modality rescale or LUT, then VOI LUT or window, are applied (PS3.3 C.11.1, C.11.2), MONOCHROME1 is inverted, and
    the result runs from 0 to 255. Without a VOI the values that occur are spread over that range. Padding is black.

    Args:
        data: a whole file.
        settings: max_pixels, checked on the header before any pixel is decoded.

    Raises:
        BadImage: not_an_image (DICOM without a picture), multi_frame, burned_in_annotation, for_processing,
            too_many_pixels, unsupported_photometric, unsupported_depth, unsupported_syntax, truncated or unreadable.
    """
    try:
        dataset = _parse(data)
        header = _check_header(dataset, settings)
        photometric = str(dataset.PhotometricInterpretation)
        stored = _decode_stored(dataset, header)
        bits = dataset.BitsStored
        lookup = _display_table(dataset, _occurring_values(stored, bits))
    except BadImage:
        raise
    except Exception as error:  # pydicom and its decoders raise anything on a hostile file
        raise BadImage("unreadable", f"A sound DICOM file was expected. Received: {error}") from None
    grey = np.empty(stored.shape, np.uint8)
    for rows in _strips(stored):
        grey[rows] = lookup[_mask_stored_bits(stored[rows], bits)]
    return DicomImage(header, photometric, grey)


def _parse(data: bytes, stop_before_pixels: bool = False) -> pydicom.Dataset:
    # pydicom would inflate a deflated file whole, whatever its size.
    if DeflatedExplicitVRLittleEndian.encode() in data:
        data = _inflate(data)
    return pydicom.dcmread(io.BytesIO(data), stop_before_pixels=stop_before_pixels, force=True)


def _inflate(data: bytes) -> bytes:
    """The elements of a deflated file (PS3.5 A.5), as a file without a meta header."""
    start = 144 + int.from_bytes(data[140:144], "little")
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    elements = inflate.decompress(data[start:], _MAX_INFLATED) if data[132:140] == b"\2\0\0\0UL\4\0" else b""
    if not elements or inflate.unconsumed_tail or DeflatedExplicitVRLittleEndian.encode() in elements:
        raise BadImage(
            "unreadable", f"A deflated DICOM file of at most {_MAX_INFLATED:,} bytes was expected. Received: another"
        )
    return elements


def _check_header(dataset: pydicom.Dataset, settings: ImageSettings) -> Header:
    """Refuses what is not a single grey picture for presentation within the limits."""
    _check_content(dataset)
    height, width = int(dataset.Rows), int(dataset.Columns)
    if height * width > settings.max_pixels:
        raise BadImage(
            "too_many_pixels", f"At most {settings.max_pixels:,} pixels were expected. Received: {width} × {height}"
        )
    photometric = dataset.get("PhotometricInterpretation")
    if photometric not in ("MONOCHROME1", "MONOCHROME2") or dataset.get("SamplesPerPixel", 1) != 1:
        raise BadImage("unsupported_photometric", f"Grey of one sample per pixel was expected. Received: {photometric}")
    allocated, bits = dataset.get("BitsAllocated"), dataset.get("BitsStored")
    sound = allocated in (8, 16) and isinstance(bits, int) and 1 < bits <= allocated
    if not sound or dataset.get("HighBit", bits - 1) != bits - 1 or dataset.get("PixelRepresentation") not in (0, 1):
        raise BadImage("unsupported_depth", f"8 or 16 bits per pixel were expected. Received: {bits} of {allocated}")
    if "PixelData" not in dataset:
        raise BadImage("truncated", "Pixels were expected. Received: a header without them")
    if not (height and width):
        raise BadImage("unreadable", f"A picture was expected. Received: {width} × {height} pixels")
    return Header("dicom", width, height, allocated)


def _check_content(dataset: pydicom.Dataset) -> None:
    if "Rows" not in dataset or "Columns" not in dataset:
        raise BadImage("not_an_image", "A DICOM file with a picture was expected. Received: one without rows")
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        raise BadImage("multi_frame", f"One frame was expected. Received: {dataset.NumberOfFrames}")
    if str(dataset.get("BurnedInAnnotation") or "").strip().upper() == "YES":
        raise BadImage("burned_in_annotation", "A picture without writing in it was expected. Received: one with")
    if str(dataset.get("PresentationIntentType") or "").strip().upper() == "FOR PROCESSING":
        raise BadImage("for_processing", "A picture for presentation was expected. Received: raw data of a detector")


def _decode_stored(dataset: pydicom.Dataset, header: Header) -> np.ndarray:
    """Pixels as stored, uint or int of 8 or 16 bits [height, width]."""
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        uid = "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1" if little else "1.2.840.10008.1.2.2"
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(uid)
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise BadImage("unsupported_syntax", f"A syntax of pictures was expected. Received: {syntax}") from None
    if not decoder.is_available:
        raise BadImage("unsupported_syntax", f"A syntax that is read here was expected. Received: {syntax}")
    expected = header.width * header.height * header.bits // 8
    if syntax.is_encapsulated:
        _check_frame(dataset.PixelData, syntax, header, expected)
    elif len(dataset.PixelData) < expected:
        raise BadImage("truncated", f"{expected:,} bytes of pixels were expected. Received: {len(dataset.PixelData):,}")
    pixels, _ = decoder.as_array(dataset, index=0)
    if pixels.shape != (header.height, header.width) or pixels.dtype.itemsize > 2:
        raise BadImage("unreadable", f"{header.width} × {header.height} pixels were expected. Received: {pixels.shape}")
    return pixels


def _check_frame(pixels: bytes, syntax: pydicom.uid.UID, header: Header, expected: int) -> None:
    """Refuses a compressed picture that is larger than the header declares, before a decoder allocates it."""
    frames = list(pydicom.encaps.generate_frames(pixels, number_of_frames=1))
    if len(frames) != 1 or not frames[0]:
        raise BadImage("truncated", f"One compressed frame was expected. Received: {len(frames)}")
    frame = frames[0]
    if syntax == RLELossless:
        sizes = [_rle_size(segment, expected) for segment in _rle_segments(frame)]
        if sum(sizes) > expected + len(sizes):
            raise BadImage("unreadable", f"{expected:,} bytes of pixels were expected. Received: more")
        if sum(sizes) < expected:
            raise BadImage("truncated", f"{expected:,} bytes of pixels were expected. Received: {sum(sizes):,}")
        return
    size = _codestream_size(frame)
    if size != (header.width, header.height):
        raise BadImage("unreadable", f"{header.width} × {header.height} pixels were expected. Received: {size}")


def _rle_segments(frame: bytes) -> list[bytes]:
    count = int.from_bytes(frame[:4], "little")
    starts = [int.from_bytes(frame[4 * i : 4 * i + 4], "little") for i in range(1, min(count, 15) + 1)]
    return [frame[a:b] for a, b in zip(starts, [*starts[1:], len(frame)], strict=True)]


def _rle_size(segment: bytes, limit: int) -> int:
    """Bytes that a run-length segment unpacks to (PS3.5 annex G.3); the count ends just above `limit`."""
    position, size = 0, 0
    while position < len(segment) - 1 and size <= limit:
        code = segment[position]
        if code < 128:
            size, position = size + min(code + 1, len(segment) - position - 1), position + code + 2
        else:
            size, position = size + (257 - code if code > 128 else 0), position + (2 if code > 128 else 1)
    return size


def _codestream_size(frame: bytes) -> tuple[int, int]:
    """(width, height) that a JPEG, JPEG-LS or JPEG 2000 codestream declares; (0, 0) where it declares none."""
    start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)  # SOC and SIZ of JPEG 2000
    if start >= 0:
        right, bottom, left, top = (int.from_bytes(frame[start + i : start + i + 4], "big") for i in (8, 12, 16, 20))
        return right - left, bottom - top
    position = 2
    while frame[position : position + 1] == b"\xff" and position + 9 <= len(frame):
        marker = frame[position + 1]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            height, width = struct.unpack_from(">HH", frame, position + 5)
            return width, height
        position += 1 if marker == 0xFF else 2 + int.from_bytes(frame[position + 2 : position + 4], "big")
    return 0, 0


def _strips(pixels: np.ndarray) -> list[slice]:
    rows = max(1, _STRIP_PIXELS // pixels.shape[1])
    return [slice(y, y + rows) for y in range(0, pixels.shape[0], rows)]


def _mask_stored_bits(pixels: np.ndarray, bits: int) -> np.ndarray:
    """The stored bits of each pixel as an index, without the bits above them (overlays of old files)."""
    return pixels.astype(np.int32) & ((1 << bits) - 1)


def _occurring_values(pixels: np.ndarray, bits: int) -> np.ndarray:
    """Which patterns of stored bits occur, bool [2^bits]."""
    occurring = np.zeros(1 << bits, bool)
    for rows in _strips(pixels):
        occurring[_mask_stored_bits(pixels[rows], bits)] = True
    return occurring


def _display_table(dataset: pydicom.Dataset, occurring: np.ndarray) -> np.ndarray:
    """The grey level that each pattern of stored bits is shown as, uint8 [2^bits]."""
    stored = np.arange(len(occurring))
    if dataset.PixelRepresentation:
        stored = np.where(stored < len(stored) // 2, stored, stored - len(stored))
    padding = _padding(dataset, stored)
    values = np.asarray(apply_modality_lut(stored, dataset), np.float64)
    if not np.isfinite(values).all():
        raise BadImage("unreadable", "A finite rescale was expected. Received: an infinite slope or intercept")
    if dataset.get("VOILUTSequence"):
        output_bits = dataset.VOILUTSequence[0].LUTDescriptor[2]
        shares = apply_voi(np.rint(values).astype(np.int64), dataset) / ((1 << output_bits) - 1)
    elif dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
        shares = _window(values, dataset)
    else:
        used = values[occurring & ~padding]
        low, high = (used.min(), used.max()) if len(used) else (0.0, 1.0)
        shares = (values - low) / max(high - low, 1e-9)
    shares = np.clip(shares, 0, 1)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shares = 1 - shares
    return np.where(padding, 0, np.rint(shares * 255)).astype(np.uint8)


def _window(values: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """Share of white by the first window of the header (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
    centre, width = float(_first(dataset.WindowCenter)), float(_first(dataset.WindowWidth))
    function = str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper()
    if not (np.isfinite(centre) and np.isfinite(width)) or width < (1 if function == "LINEAR" else 1e-9):
        raise BadImage("unreadable", f"A window with a width was expected. Received: centre {centre}, width {width}")
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    if function == "LINEAR_EXACT":
        return (values - centre) / width + 0.5
    return (values - (centre - 0.5)) / max(width - 1, 1e-9) + 0.5


def _padding(dataset: pydicom.Dataset, stored: np.ndarray) -> np.ndarray:
    """Which stored values are padding up to a rectangle (PS3.3 C.7.5.1.1.2), bool."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return np.zeros(len(stored), bool)
    limit = dataset.get("PixelPaddingRangeLimit", value)
    # Both are stored as bits, and some writers use the wrong sign.
    low, high = sorted((_as_stored(int(value), stored), _as_stored(int(limit), stored)))
    return (stored >= low) & (stored <= high)


def _as_stored(value: int, stored: np.ndarray) -> int:
    if stored.min() < 0 <= stored.max() < value:
        return value - 65_536
    return value & 0xFFFF if stored.min() == 0 and value < 0 else value


def _first(value: Any) -> Any:  # noqa: ANN401 - a value of an element, or several
    return value[0] if isinstance(value, pydicom.multival.MultiValue | list) else value
