"""A DICOM file on its way to the picture that is stored: what is shown, what is refused, what is left behind."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pydicom.data
import pytest
from dicom_samples import PERSON, baseline, dataset, dicom, saved
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels import apply_voi_lut
from pydicom.pixels.decoders.base import Decoder
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from cxr_ml.imaging import decode, formats, measure
from cxr_ml.imaging import dicom as dicoms
from cxr_ml.settings import Settings

SETTINGS = Settings()
RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)  # every value of 12 bits once
SAMPLES = Path(pydicom.data.__file__).parent / "test_files"


def shown(data, settings=SETTINGS):
    return decode.decode_image(data, settings.images).pixels


def refused(data, settings=SETTINGS):
    with pytest.raises(formats.BadImage) as caught:
        decode.decode_image(data, settings.images)
    assert "Received: " in str(caught.value)
    return caught.value.code


# What is shown


def test_without_a_window_the_values_that_occur_fill_the_range():
    np.testing.assert_array_equal(shown(dicom(RAMP, 12)), np.rint(RAMP / 4095 * 255))
    part = (RAMP // 4 + 1000).astype(np.uint16)
    assert (shown(dicom(part, 12)).min(), shown(dicom(part, 12)).max()) == (0, 255)


def test_a_picture_of_one_value_is_black_and_not_an_error():
    assert (shown(dicom(np.full((8, 9), 700, np.uint16), 12)) == 0).all()


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (2, -1000), (0.5, 300)])
def test_rescale_and_window_are_applied_as_pydicom_applies_them(function, slope, intercept):
    header = dict(
        RescaleSlope=slope, RescaleIntercept=intercept, WindowCenter=1500, WindowWidth=800, VOILUTFunction=function
    )
    made = dataset(RAMP, 12, **header)
    expected = apply_voi_lut(RAMP * np.float64(slope) + intercept, made)
    low, high = sorted((intercept, 4095 * slope + intercept))
    expected = (expected - low) / (high - low) * 255
    assert np.abs(shown(saved(made)) - expected).max() <= 1


def test_the_first_of_several_windows_counts():
    several = dicom(
        RAMP, 12, WindowCenter=[1000, 3000], WindowWidth=[200, 900], WindowCenterWidthExplanation=["A", "B"]
    )
    np.testing.assert_array_equal(shown(several), shown(dicom(RAMP, 12, WindowCenter=1000, WindowWidth=200)))


def table(values, bits, first=0):
    item = Dataset()
    item.LUTDescriptor = [len(values), first, bits]
    item["LUTDescriptor"].VR = "US"
    item.LUTData = values
    item["LUTData"].VR = "US"
    return item


def test_a_voi_table_comes_before_a_window():
    values = [4095 - v for v in range(4096)]
    made = dicom(RAMP, 12, VOILUTSequence=Sequence([table(values, 12)]), WindowCenter=100, WindowWidth=10)
    np.testing.assert_array_equal(shown(made), np.rint((4095 - RAMP) / 4095 * 255))


def test_a_modality_table_comes_before_the_window():
    item = table([v // 2 for v in range(4096)], 16)
    item.ModalityLUTType = "US"
    made = dicom(RAMP, 12, ModalityLUTSequence=Sequence([item]), WindowCenter=1024, WindowWidth=2048)
    assert np.abs(shown(made) - (RAMP // 2) / 2047 * 255).max() <= 1


def test_monochrome1_is_inverted():
    header = {"WindowCenter": 2000, "WindowWidth": 1000}
    negative = shown(dicom(RAMP, 12, PhotometricInterpretation="MONOCHROME1", **header))
    np.testing.assert_array_equal(negative, 255 - shown(dicom(RAMP, 12, **header)))


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.uint16, np.int16])
def test_low_values_are_dark_whatever_the_depth_and_the_sign(kind):
    info = np.iinfo(kind)
    pixels = np.linspace(info.min, info.max, 256 * 4).reshape(32, 32).astype(kind)
    opened = decode.decode_image(dicom(pixels), SETTINGS.images)
    assert (opened.format, opened.mode, opened.bits) == ("dicom", "MONOCHROME2", info.bits)
    assert np.abs(opened.pixels - np.linspace(0, 255, 1024).reshape(32, 32)).max() <= 1


def test_overlays_above_the_stored_bits_are_not_shown():
    np.testing.assert_array_equal(shown(dicom(RAMP | 0xF000, 12)), shown(dicom(RAMP, 12)))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(("kind", "padding"), [(np.uint16, 0), (np.uint16, 4095), (np.int16, -2000)])
def test_padding_is_black_and_does_not_narrow_the_range(photometric, kind, padding):
    pixels = (RAMP // 8 + 800).astype(kind)
    pixels[:, :20] = padding
    bits = 12 if kind is np.uint16 else 16
    grey = shown(dicom(pixels, bits, PhotometricInterpretation=photometric, PixelPaddingValue=padding))
    assert (grey[:, :20] == 0).all()
    assert grey[:, 20:].min() == 0 and grey[:, 20:].max() == 255


@pytest.mark.parametrize(
    "name",
    [
        "MR_small_implicit", "MR_small_bigendian", "MR_small_RLE", "MR_small_jp2klossless",
        "MR_small_jpeg_ls_lossless", "MR_small_padded",
    ],
)  # fmt: skip
def test_every_lossless_syntax_gives_the_same_picture_and_hash(name):
    measured, stored = measure.measure_image((SAMPLES / f"{name}.dcm").read_bytes(), SETTINGS.images)
    same, _ = measure.measure_image((SAMPLES / "MR_small.dcm").read_bytes(), SETTINGS.images)
    assert measured["sha256"] == same["sha256"] == hashlib.sha256(stored).hexdigest()


@pytest.mark.parametrize(
    "name", ["JPGExtended", "693_J2KI", "JPEG2000", "JPEGLSNearLossless_16", "JPEGLSNearLossless_08"]
)
def test_lossy_syntaxes_are_decoded_as_pydicom_decodes_them(name):
    path = SAMPLES / f"{name}.dcm"
    header = pydicom.dcmread(path)
    grey, raw = shown(path.read_bytes()), header.pixel_array
    assert grey.shape == raw.shape and grey.std() > 5
    order = np.argsort(raw.ravel(), kind="stable")
    assert (np.diff(grey.ravel()[order].astype(int)) >= 0).all()  # brighter stays brighter


def test_a_deflated_file_is_read_and_one_that_inflates_without_end_is_not(monkeypatch):
    data = (SAMPLES / "image_dfl.dcm").read_bytes()
    header = pydicom.dcmread(io.BytesIO(data))
    assert shown(data).shape == header.pixel_array.shape and shown(data).std() > 5
    made = dataset(RAMP, 12, ImageComments="x" * 100, **PERSON)
    made.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    np.testing.assert_array_equal(shown(saved(made)), shown(dicom(RAMP, 12)))
    assert dicoms.read_identity(saved(made)).patients[0] == PERSON["PatientID"]
    monkeypatch.setattr(dicoms, "_MAX_INFLATED", 5_000)
    assert refused(saved(made)) == "unreadable"


def test_a_baseline_jpeg_and_its_pixels_are_the_same_picture():
    y, x = np.mgrid[0:64, 0:64]
    pixels = (2 * x + 2 * y).astype(np.uint8)
    assert np.abs(shown(baseline(pixels, WindowCenter=127.5, WindowWidth=256)).astype(int) - pixels).mean() < 2


def test_the_preamble_may_be_missing():
    whole = dicom(RAMP, 12)
    np.testing.assert_array_equal(shown(whole[132:]), shown(whole))


def test_a_file_without_any_preamble_and_meta_header_is_read():
    raw = io.BytesIO()
    made = dataset(RAMP, 12)
    del made.file_meta
    pydicom.dcmwrite(raw, made, implicit_vr=True, little_endian=True)
    np.testing.assert_array_equal(shown(raw.getvalue()), shown(dicom(RAMP, 12)))


# What is stored


def test_stored_is_a_grey_png_of_the_picture_that_was_measured():
    data = dicom(RAMP, 12, **PERSON)
    measured, stored = measure.measure_image(data, SETTINGS.images)
    assert (measured["format"], measured["width"], measured["bytes"]) == ("dicom", 64, len(data))
    assert (Image.open(io.BytesIO(stored)).format, Image.open(io.BytesIO(stored)).mode) == ("PNG", "L")
    np.testing.assert_array_equal(decode.decode_grey(stored), shown(data))
    assert formats.strip_metadata(stored, "png") == stored


def test_the_header_changes_neither_the_bytes_stored_nor_their_hash():
    other = dicom(RAMP, 12, PatientID="other", StudyDescription="another study")
    assert (
        measure.measure_image(dicom(RAMP, 12, **PERSON), SETTINGS.images)[1]
        == measure.measure_image(other, SETTINGS.images)[1]
    )


# What is refused


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ({"NumberOfFrames": 2}, "multi_frame"),
        ({"BurnedInAnnotation": "YES"}, "burned_in_annotation"),
        ({"PresentationIntentType": "FOR PROCESSING"}, "for_processing"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "unsupported_photometric"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "unsupported_photometric"),
        ({"PhotometricInterpretation": None}, "unsupported_photometric"),
        ({"BitsAllocated": 32}, "unsupported_depth"),
        ({"BitsStored": 17}, "unsupported_depth"),
        ({"HighBit": 15}, "unsupported_depth"),
        ({"PixelData": None}, "truncated"),
        ({"PixelData": b"\0" * 100}, "truncated"),
        ({"Rows": 65535, "Columns": 65535}, "too_many_pixels"),
        ({"Rows": 0}, "unreadable"),
        ({"Rows": None}, "not_an_image"),
        ({"WindowCenter": 100, "WindowWidth": 0}, "unreadable"),
        ({"WindowCenter": 100, "WindowWidth": -5}, "unreadable"),
    ],
)
def test_anything_but_one_sound_grey_picture_is_refused_with_its_reason(header, code):
    assert refused(dicom(RAMP, 12, **header)) == code


def test_one_frame_and_no_burned_in_annotation_is_a_picture():
    np.testing.assert_array_equal(
        shown(dicom(RAMP, 12, NumberOfFrames=1, BurnedInAnnotation="NO")), shown(dicom(RAMP, 12))
    )


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("rtplan", "not_an_image"),
        ("reportsi", "not_an_image"),
        ("MR_truncated", "truncated"),
        ("rtdose", "multi_frame"),
        ("rtdose_rle_1frame", "unsupported_depth"),
        ("SC_rgb_rle_2frame", "multi_frame"),
        ("SC_rgb_jpeg_gdcm", "unsupported_photometric"),
        ("examples_palette", "unsupported_photometric"),
        ("badVR", "unreadable"),
    ],
)
def test_the_files_that_pydicom_is_tested_with_have_a_reason(name, code):
    assert refused((SAMPLES / f"{name}.dcm").read_bytes()) == code


def test_a_syntax_that_nothing_here_decodes_is_named():
    made = dataset(RAMP, 12)
    made.compress(RLELossless)
    made.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.102"  # MPEG-4
    assert refused(saved(made)) == "unsupported_syntax"
    made.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.95"  # JPIP: the pixels are elsewhere
    assert refused(saved(made)) == "unsupported_syntax"


@pytest.mark.parametrize("syntax", [None, RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_a_file_cut_short_has_a_reason(syntax, share):
    made = dataset(np.random.default_rng(0).integers(0, 4096, (64, 64)).astype(np.uint16), 12)
    if syntax:
        made.compress(syntax)
    whole = saved(made)
    assert refused(whole[: int(len(whole) * share)]) in ("truncated", "unreadable", "not_an_image")


def test_limits_are_checked_before_any_pixel_is_decoded(monkeypatch):
    monkeypatch.setattr(Decoder, "as_array", lambda *_, **__: pytest.fail("decoded"))
    assert refused(dicom(RAMP, 12), Settings(images={"max_pixels": 100})) == "too_many_pixels"
    assert refused(dicom(RAMP, 12), Settings(images={"max_file_bytes": 100})) == "too_large"


def grown(syntax):
    """A small header over a compressed picture of 1,000 × 1,000."""
    made = dataset(np.zeros((1000, 1000), np.uint16), 12)
    made.compress(syntax)
    made.Rows = made.Columns = 10
    return saved(made)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_a_compressed_picture_larger_than_its_header_says_is_refused_undecoded(syntax, monkeypatch):
    monkeypatch.setattr(Decoder, "as_array", lambda *_, **__: pytest.fail("decoded"))
    assert refused(grown(syntax)) == "unreadable"


def test_random_damage_raises_nothing_but_bad_image():
    rng, outcomes = np.random.default_rng(1), set()
    small = RAMP[:16, :16].copy()
    compressed = dataset(small, 12)
    compressed.compress(RLELossless)
    for data in (
        dicom(small, 12, WindowCenter=100, WindowWidth=50, **PERSON),
        saved(compressed),
        baseline(small.astype(np.uint8)),
    ):
        for _ in range(150):
            damaged = bytearray(data)
            for at in rng.integers(128, len(data), 3):
                damaged[at] = rng.integers(256)
            try:
                decode.decode_image(bytes(damaged), SETTINGS.images)
                outcomes.add("opened")
            except formats.BadImage as error:
                outcomes.add(error.code)
            dicoms.read_identity(bytes(damaged))
    assert {"opened", "unreadable"} <= outcomes


# What the header says


def test_the_patient_is_the_id_or_else_the_name_and_the_view_a_defined_term():
    said = dicoms.read_identity(dicom(RAMP, 12, ViewPosition="pa", **PERSON))
    assert said.patients == ("MRN-0012345", "Doe^Jane^Quincy") and said.view == "PA"
    assert dicoms.read_identity(dicom(RAMP, 12, PatientName="Doe^Jane")).patients == ("Doe^Jane",)
    assert dicoms.read_identity(dicom(RAMP, 12)) == dicoms.Identity((), (), "", "")
    assert dicoms.read_identity(dicom(RAMP, 12, ViewPosition="JANE DOE")).view == ""
    assert dicoms.read_identity(b"\0" * 128 + b"DICM" + b"\xff" * 500) == dicoms.Identity((), (), "", "")
