"""Handmade DICOM files."""

import io

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, JPEGBaseline8Bit

PERSON = {"PatientID": "MRN-0012345", "PatientName": "Doe^Jane^Quincy", "PatientBirthDate": "19610203"}


def dataset(pixels: np.ndarray, bits: int | None = None, **header) -> Dataset:
    """A computed radiograph with these pixels, 8 or 16 bits, signed or not; None as a value removes an element."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID = ComputedRadiographyImageStorage
    made.SOPInstanceUID = "1.2.826.0.1.3680043.8.498.1"
    made.Rows, made.Columns = pixels.shape
    made.SamplesPerPixel = 1
    made.PhotometricInterpretation = "MONOCHROME2"
    made.BitsAllocated = 8 * pixels.dtype.itemsize
    made.BitsStored = bits or made.BitsAllocated
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    made.add_new("PixelData", "OB" if made.BitsAllocated == 8 else "OW", pixels.tobytes())
    for keyword, value in header.items():
        if value is None:
            delattr(made, keyword)
        else:
            setattr(made, keyword, value)
    return made


def saved(made: Dataset) -> bytes:
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, made, enforce_file_format=True)
    return buffer.getvalue()


def dicom(pixels: np.ndarray, bits: int | None = None, **header) -> bytes:
    return saved(dataset(pixels, bits, **header))


def baseline(pixels: np.ndarray, **header) -> bytes:
    """With the pixels as a JPEG of 8 bits."""
    made, buffer = dataset(pixels, **header), io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    made.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    made.PixelData = encapsulate([buffer.getvalue()])
    made["PixelData"].VR = "OB"
    return saved(made)
