"""Nothing that tells whose picture it is reaches the store, wherever in a file or its name it was."""

import io
import zipfile
from pathlib import Path

import pandas as pd
from dicom_samples import PERSON, baseline, dicom
from drop_samples import csv, encoded, film, judged, put_drop, resized, snapshot, take, verdicts
from PIL import Image, PngImagePlugin

from cxr_ml.imaging import decode
from cxr_ml.ingest import deidentify, ingest_drop, process_file, tables
from cxr_ml.validation import quarantine

SECRET = "Zaphod Beeblebrox"  # whom no file of the project and no phantom mentions
NAMES = ("zaphod", "beeblebrox", "mrn-0012345", "0012345", "quincy", "19610203", "P0007")
HEADER = {
    "PatientID": "MRN-0012345",
    "PatientName": "Beeblebrox^Zaphod^Quincy",
    "PatientBirthDate": "19610203",
    "OtherPatientIDs": ["MRN-0012345", "P0007"],
    "StudyDescription": SECRET,
    "ImageComments": SECRET,
    "ViewPosition": "PA",
    "InstitutionName": SECRET,
    "AccessionNumber": "ZAPHOD1",
}


def everything(settings) -> str:
    """All that is stored, with its tables unpacked, in lower case."""
    texts = []
    for key, data in snapshot(settings).items():
        texts += [key, data.decode("latin-1")]
        if key.endswith(".parquet"):
            texts.append(pd.read_parquet(io.BytesIO(data)).to_csv())
        elif key.startswith("images/"):
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                texts.append(repr(image.info))
    return "\n".join(texts).lower()


def tagged() -> dict[str, bytes]:
    """Pictures that say whose they are, in every way that PNG and JPEG have."""
    text = PngImagePlugin.PngInfo()
    text.add_text("Patient", SECRET)
    text.add_text("Note", SECRET * 50, zip=True)
    text.add_itxt("XML:com.adobe.xmp", f"<xmp>{SECRET}</xmp>")
    exif = Image.Exif()
    exif[0x010E], exif[0x9286] = SECRET, SECRET
    told = {"exif": exif, "icc_profile": SECRET.encode() * 20}
    jpeg = encoded(film(2), "JPEG", comment=SECRET.encode(), xmp=SECRET.encode(), **told)
    return {
        "a.png": encoded(film(1), pnginfo=text, **told) + SECRET.encode(),
        "b.jpg": jpeg[:2] + b"\xff\xed\0\x13" + SECRET.encode() + jpeg[2:] + SECRET.encode(),
    }


def leaks(settings) -> set[str]:
    stored = everything(settings)
    return {name for name in NAMES if name.lower() in stored}


def test_the_search_finds_what_is_planted(store, settings):
    """Else the tests below would prove nothing."""
    for number, data in enumerate(tagged().values()):
        store.put_if_absent(f"images/{number}", data)
    assert leaks(settings) >= {"zaphod", "beeblebrox"}
    ingest_like = pd.DataFrame({"file": ["mrn-0012345.png"]})
    store.put_if_absent("batches/b/x.parquet", tables.to_parquet(ingest_like))
    assert "mrn-0012345" in leaks(settings)


def test_headers_names_and_tables_leave_no_trace_of_a_patient(settings):
    files = {f"P0007/Zaphod_{file}": data for file, data in tagged().items()}
    files["BEEBLEBROX.ZAPHOD/mrn0012345_pa.dcm"] = dicom(film(3), **HEADER)
    files["mrn-0012345.dcm"] = baseline(film(4), **HEADER)
    files["refused/quincy zaphod.dcm"] = dicom(film(5), BurnedInAnnotation="YES", **HEADER)
    files["damaged/P0007.dcm"] = b"not a picture of P0007"
    files["unlisted/p0007.png"] = encoded(film(6))
    rows = [
        "P0007/Zaphod_a.png,normal,P0007,site of P0007,PA P0007",
        "P0007/Zaphod_b.jpg,covid,Zaphod,Zaphod,",
        "BEEBLEBROX.ZAPHOD/mrn0012345_pa.dcm,normal,,,",
        "mrn-0012345.dcm,normal,MRN-0012345,,",
        "refused/quincy zaphod.dcm,normal,,,",
        "damaged/P0007.dcm,P0007,P0007,,",
        "lost/P0007.png,normal,P0007,,",
    ]
    table = csv(*rows, header="filename,label,patient_id,source,view")
    put_drop(settings, "drop", files | {"labels.csv": table})
    batch = take(settings, "drop")
    found = judged(settings, batch.batch)
    assert len(found) == 8
    assert leaks(settings) == set()
    assert len([k for k in snapshot(settings) if k.startswith("images/")]) == 5
    mark = deidentify.hash_patient(settings.inbox, "MRN-0012345")
    films = found[found["format"] == "dicom"]
    assert set(films["patient"]) == {mark} and set(films["view"]) == {"PA"}
    (burned,) = [v for f, v in verdicts(found).items() if f.startswith(f"refused/{mark} ")]
    assert burned == ("quarantined", "burned_in_annotation")


def test_the_same_in_an_archive(settings):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.comment = SECRET.encode()
        for file, data in tagged().items():
            archive.writestr(f"NORMAL/{file}", data)
        archive.writestr("COVID19/Zaphod/MRN-0012345.dcm", dicom(film(3), **HEADER))
    (Path(settings.inbox.path) / "drop.zip").write_bytes(buffer.getvalue())
    take(settings, "drop.zip")
    assert len([k for k in snapshot(settings) if k.startswith("images/")]) == 3
    assert leaks(settings) == set()


def test_hashed_names_leave_no_trace_of_undeclared_patients(store, settings):
    settings = settings.replace(inbox={"file_names": "hash"})
    files = {
        "NORMAL/Zaphod Beeblebrox.png": encoded(film(1)),
        "COVID19/Beeblebrox/1.png": encoded(film(2)),
        "Zaphod/2.png": encoded(film(3)),
        "NORMAL/quincy.dcm": b"not a picture",
    }
    batch = take(settings, "drop", files).batch
    assert leaks(settings) == set()
    found = verdicts(judged(settings, batch))
    assert sorted(f.rpartition("/")[0] for f in found) == ["", "COVID19", "NORMAL", "NORMAL"]
    for file in files:
        for name in (file, f"drop/{file}", f"{batch}/{file}"):
            told = quarantine.describe_file(store, settings, name)
            assert told["file"].endswith(deidentify.hash_path(settings.inbox, file))
    before = snapshot(settings)
    assert ingest_drop.ingest(store, settings, "drop") == batch and snapshot(settings) == before


def test_two_spellings_of_a_patient_in_the_names_of_two_files_are_two_files(settings):
    rows = csv(
        "MRN-0012345.png,normal,MRN-0012345", "mrn_0012345.png,covid,MRN-0012345", header="file,label,patient_id"
    )
    files = {"MRN-0012345.png": encoded(film(1)), "mrn_0012345.png": encoded(film(2)), "labels.csv": rows}
    found = judged(settings, take(settings, "drop", files).batch)
    mark = deidentify.hash_patient(settings.inbox, "MRN-0012345")
    assert found["label"].to_dict() == {f"{mark}.png": "NORMAL", f"{mark}~2.png": "COVID19"}
    assert leaks(settings) == set()


def test_a_dicom_film_is_stored_under_its_hash_as_a_png_and_found_there_by_its_row(store, settings):
    put_drop(settings, "drop", {"NORMAL/a.dcm": dicom(film(1), **PERSON), "NORMAL/b.png": encoded(film(2))})
    batch = take(settings, "drop")
    rows = judged(settings, batch.batch)
    row = rows.loc["NORMAL/a.dcm"]
    key = process_file.image_key(row["sha256"], row["format"])
    assert (row["format"], row["bits"], row["verdict"]) == ("dicom", 8, "accepted") and key.endswith(".png")
    stored = store.get(key)
    assert (decode.decode_grey(stored) == decode.decode_image(dicom(film(1)), settings.images).pixels).all()
    head = store.client.head_object(Bucket=settings.store.bucket, Key=settings.store.prefix + key)
    assert head["ContentType"] == "image/png"
    # A film that comes later is compared with it on pixels, under the same name.
    put_drop(settings, "later", {"NORMAL/c.dcm": dicom(film(1), PatientID="another"), "NORMAL/d.jpg": resized(1)})
    later = judged(settings, take(settings, "later").batch)
    assert verdicts(later) == {
        "NORMAL/c.dcm": ("duplicate", "exact_duplicate"),
        "NORMAL/d.jpg": ("duplicate", "near_duplicate"),
    }
    assert set(later["duplicate_of"]) == {row["sha256"]}
