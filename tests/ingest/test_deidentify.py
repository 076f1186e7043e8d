"""Who a patient is does not get into the store: neither by an id, nor by the name of a file."""

import re

import pytest
from dicom_samples import PERSON, dicom
from drop_samples import film

from cxr_ml.errors import Refused
from cxr_ml.ingest import deidentify, tables
from cxr_ml.settings import Settings

SETTINGS = Settings(inbox={"patient_salt": "salt"})


def row(file, **said):
    return {"file": file, "label_raw": "", "source": "", "view": "", "patient": ""} | said


def hidden(file, *names):
    return deidentify.redact(row(file), list(names), "MARK")["file"]


def test_a_patient_is_the_same_in_all_drops_and_another_with_another_salt():
    assert (
        deidentify.hash_patient(SETTINGS.inbox, "P7")
        == deidentify.hash_patient(SETTINGS.inbox, "P7")
        != deidentify.hash_patient(SETTINGS.inbox, "P8")
    )
    other = SETTINGS.replace(inbox={"patient_salt": "another"})
    assert deidentify.hash_patient(other.inbox, "P7") != deidentify.hash_patient(SETTINGS.inbox, "P7")
    assert len(deidentify.hash_patient(SETTINGS.inbox, "P7")) == 16


@pytest.mark.parametrize(
    ("text", "same"),
    [("Pat-077", "pat077"), ("DOE^JANE", "Doe^Jane"), ("abc 9", "ABC-9"), ("ＡＢ１", "ab1"), ("Jose\u0301", "JOSÉ")],
)
def test_a_patient_is_the_same_however_the_id_is_written(text, same):
    assert deidentify.hash_patient(SETTINGS.inbox, text) == deidentify.hash_patient(SETTINGS.inbox, same)


@pytest.mark.parametrize(("one", "other"), [("077", "77"), ("Pat-1-23", "Pat-2-13"), ("राम", "रमा")])
def test_ids_of_other_letters_or_digits_are_other_patients(one, other):
    assert deidentify.hash_patient(SETTINGS.inbox, one) != deidentify.hash_patient(SETTINGS.inbox, other)


@pytest.mark.parametrize("text", ["", "  ", "-", "n/a", "NaN", "Anonymous", "ANON^", "unknown", "0"])
def test_what_stands_for_nobody_is_no_patient_and_needs_no_salt(text):
    assert deidentify.hash_patient(Settings().inbox, text) == ""


def test_patients_without_a_salt_are_refused_with_what_to_do():
    with pytest.raises(Refused, match=r"CXR_INBOX__PATIENT_SALT.*secrets\.token_urlsafe") as caught:
        deidentify.hash_patient(Settings().inbox, "Jane Doe")
    assert "Jane" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "name", "expected"),
    [
        ("images/MRN-0012345_pa.png", "MRN-0012345", "images/MARK_pa.png"),
        ("images/mrn_0012345.png", "MRN-0012345", "images/MARK.png"),
        ("images/xMRN0012345b.png", "MRN-0012345", "images/xMARKb.png"),
        ("MRN-0012345/MRN-0012345.png", "mrn-0012345", "MARK/MARK.png"),
        ("NORMAL2-IM-0415-0001.jpeg", "IM-0415", "NORMAL2-MARK-0001.jpeg"),
        ("COVID19/19_2.png", "19", "COVID19/MARK_2.png"),  # a short id only where it stands alone
        ("NORMAL/0007.png", "7", "NORMAL/MARK.png"),
        ("NORMAL/107.png", "7", "NORMAL/107.png"),
        ("DOE_JANE.dcm", "Doe^Jane", "MARK.dcm"),
        ("jane-doe-1.dcm", "Doe^Jane", "MARK-1.dcm"),
        ("janedoe.dcm", "Doe^Jane", "MARK.dcm"),
        ("doe.dcm", "Doe^Jane^Quincy", "MARK.dcm"),
        ("chest_quincy.dcm", "Doe^Jane^Quincy", "chest_MARK.dcm"),
        ("quincyjane-doe.dcm", "Doe^Jane^Quincy", "MARK.dcm"),
        ("does.dcm", "Doe^Jane", "does.dcm"),
        (
            "M\N{LATIN SMALL LETTER U WITH DIAERESIS}ller.png",
            "M\N{LATIN SMALL LETTER U WITH DIAERESIS}LLER",
            "MARK.png",
        ),
        ("a(b)*.png", "(b)*", "a(MARK)*.png"),
        ("a+b/(b)*.png", "(b)*", "a+MARK/(MARK)*.png"),
        ("plain.png", "***", "plain.png"),
    ],
)
def test_the_name_of_a_file_that_holds_an_id_or_a_name_gets_the_mark_instead(file, name, expected):
    assert hidden(file, name) == expected


def test_all_texts_of_a_row_are_looked_through():
    said = row("a.png", label_raw="P0007", source="site of p0007", view="PA p-0007", label="NORMAL")
    found = deidentify.redact(said, ["P0007"], "MARK")
    assert found == said | {"label_raw": "MARK", "source": "site of MARK", "view": "PA MARK"}


def test_ids_of_other_patients_of_the_drop_are_found_too():
    known = deidentify.index_patients({"IM-0415": "AAAA", "P0007": "BBBB", "12": "CCCC", "nobody": ""})
    texts = row("NORMAL2-im-0415-0001/p0007_12.png", source="IM0415")
    expected = texts | {"file": "NORMAL2-AAAA-0001/BBBB_12.png", "source": "AAAA"}
    assert deidentify.redact_patients(texts, known) == expected


def test_a_dicom_header_gives_patient_and_view_where_the_drop_gives_none():
    data = dicom(film(1), ViewPosition="PA", **PERSON)
    found = deidentify.apply_header(SETTINGS.inbox, row("Doe_Jane/MRN-0012345_b19610203.dcm"), data)
    mark = deidentify.hash_patient(SETTINGS.inbox, "MRN-0012345")
    assert found == row(f"{mark}/{mark}_b{mark}.dcm", patient=mark, view="PA")
    given = row("doe jane.dcm", patient="given by the table", view="AP")
    assert deidentify.apply_header(SETTINGS.inbox, given, data) == given | {"file": "given by the table.dcm"}


def test_files_named_by_their_examination_stay_apart():
    films = [dicom(film(1), AccessionNumber=number, **PERSON) for number in ("ACC-881", "ACC-882")]
    named = zip(("acc881.dcm", "acc882.dcm"), films, strict=True)
    found = [deidentify.apply_header(SETTINGS.inbox, row(file), data)["file"] for file, data in named]
    assert len(set(found)) == 2 and all(re.fullmatch("[0-9a-f]{16}.dcm", file) for file in found)


def test_the_name_stands_in_for_a_missing_or_meaningless_id():
    for header in ({"PatientName": "Doe^Jane"}, {"PatientID": "ANONYMOUS", "PatientName": "Doe^Jane"}):
        found = deidentify.apply_header(SETTINGS.inbox, row("a.dcm"), dicom(film(1), **header))
        assert found["patient"] == deidentify.hash_patient(SETTINGS.inbox, "Doe^Jane")
    assert (
        deidentify.apply_header(SETTINGS.inbox, row("a.dcm"), dicom(film(1), PatientName="Anonymous"))["patient"] == ""
    )


def test_only_a_dicom_file_that_names_a_patient_needs_the_salt():
    with pytest.raises(Refused, match="CXR_INBOX__PATIENT_SALT"):
        deidentify.apply_header(Settings().inbox, row("a.dcm"), dicom(film(1), **PERSON))
    assert deidentify.apply_header(Settings().inbox, row("a.dcm"), dicom(film(1))) == row("a.dcm")


def test_other_files_change_nothing():
    assert deidentify.apply_header(SETTINGS.inbox, row("a.png"), b"\x89PNG") == row("a.png")


HASHED = SETTINGS.replace(inbox={"file_names": "hash"})


def nameless(file, label="", settings=HASHED):
    folders = file.split("/")[:-1]
    return deidentify.hash_file_name(
        settings.inbox, row(file, label_raw=label), file, folders, {"train", "NORMAL"}.__contains__
    )


def test_a_hashed_name_keeps_split_class_and_extension_and_nothing_else():
    found = nameless("train/NORMAL/Doe Jane/chest.of.Doe.PNG", "NORMAL")
    assert re.fullmatch(r"train/NORMAL/[0-9a-f]{16}\.png", found["file"]) and found["label_raw"] == "NORMAL"
    assert re.fullmatch("[0-9a-f]{16}", nameless("jane.doe")["file"])
    assert re.fullmatch("[0-9a-f]{16}", nameless("Doe Jane/1.png", "Doe Jane")["label_raw"])


def test_a_hashed_name_depends_on_folder_and_salt_but_not_on_the_drop():
    found = nameless("train/NORMAL/a.png")["file"]
    assert nameless("train/NORMAL/a.png")["file"] == found != nameless("train/NORMAL/b/a.png")["file"]
    assert nameless("train/NORMAL/a.png", settings=HASHED.replace(inbox={"patient_salt": "b"}))["file"] != found
    assert deidentify.hash_path(HASHED.inbox, "P7") != deidentify.hash_patient(HASHED.inbox, "P7")
    with pytest.raises(Refused, match=r"file_names.*CXR_INBOX__PATIENT_SALT"):
        nameless("Doe.png", settings=Settings(inbox={"file_names": "hash"}))


def test_a_dicom_header_leaves_a_hashed_name_alone():
    said = row("NORMAL/00012345beefbeef.dcm")
    found = deidentify.apply_header(HASHED.inbox, said, dicom(film(1), PatientID="12345"))
    assert found["file"] == said["file"] and found["patient"]


def test_files_whose_names_have_become_one_are_told_apart_in_their_order():
    names = ["a/M.png", "b.png", "a/M.png", "a/M~2.png", "a/M.png"]
    assert tables.make_unique(names) == ["a/M.png", "b.png", "a/M~3.png", "a/M~2.png", "a/M~4.png"]
    assert tables.make_unique(["M", "M"]) == ["M", "M~2"]
