"""A drop on its way into the store: what is copied, what is measured, and what happens when the way is cut short."""

import hashlib
import io
import os

import numpy as np
import pytest
from drop_samples import (
    boxed,
    csv,
    elsewhere,
    encoded,
    film,
    ingested,
    png,
    put_drop,
    resized,
    snapshot,
    verdicts,
)
from PIL import Image, PngImagePlugin

from cxr_ml.errors import Refused
from cxr_ml.imaging import measure
from cxr_ml.ingest import inbox, ingest_drop, process_file
from cxr_ml.store import ObjectStore

FIXED = [
    "file", "sha256", "format", "bytes", "width", "height", "mode", "bits", "label", "label_raw", "split_hint",
    "patient", "source", "view", "mean", "std", "p01", "p99", "saturation", "sharpness", "black_border",
    "white_border", "white_box", "phash", "fine_hash", "inner_hash", "ring", "verdict", "reasons",
]  # fmt: skip


def tagged(number: int) -> dict[str, bytes]:
    """The film as a PNG and as a JPEG that say whose it is."""
    text = PngImagePlugin.PngInfo()
    text.add_text("Patient", "Jane Doe")
    exif = Image.Exif()
    exif[0x010E] = "Jane Doe"
    return {
        "test/COVID19/a.png": encoded(film(number), pnginfo=text) + b"Jane Doe",
        "test/COVID19/b.jpg": encoded(film(number + 1), "JPEG", exif=exif, comment=b"Jane Doe") + b"Jane Doe",
    }


def test_images_are_stored_by_hash_without_metadata_or_a_changed_pixel(store, settings):
    files = tagged(1)
    assert all(data.count(b"Jane Doe") > 1 for data in files.values())
    put_drop(settings, "drop", files)
    rows = ingested(settings, ingest_drop.ingest(store, settings, "drop"))
    stored = {k: v for k, v in snapshot(settings).items() if k.startswith("images/")}
    assert len(stored) == 2
    for key, data in stored.items():
        _, folder, name = key.split("/")
        assert name.split(".")[0] == hashlib.sha256(data).hexdigest() and name.startswith(folder)
        assert b"Jane" not in data
    for file, data in files.items():
        row = rows.loc[file]
        (clean,) = [v for k, v in stored.items() if row["sha256"] in k]
        assert f"images/{row['sha256'][:2]}/{row['sha256']}.{row['format']}" in stored
        np.testing.assert_array_equal(Image.open(io.BytesIO(clean)), Image.open(io.BytesIO(data)))
    assert b"Jane" not in b"".join(snapshot(settings).values())


def test_the_same_picture_with_other_metadata_is_stored_once(store, settings):
    plain = encoded(film(1))
    put_drop(settings, "drop", {"NORMAL/a.png": plain, "NORMAL/b.png": plain + b"trailer"})
    rows = ingested(settings, ingest_drop.ingest(store, settings, "drop"))
    assert rows["sha256"].nunique() == 1
    assert len([k for k in snapshot(settings) if k.startswith("images/")]) == 1


def test_there_is_a_row_per_file_with_the_fixed_columns_and_what_the_drop_says(store, settings):
    put_drop(settings, "drop", {"train/NORMAL/a.png": png(1), "test/TURBERCULOSIS/b.jpg": boxed(2)})
    rows = ingested(settings, ingest_drop.ingest(store, settings, "drop"))
    assert [rows.index.name, *rows.columns] == FIXED
    a, b = rows.loc["train/NORMAL/a.png"], rows.loc["test/TURBERCULOSIS/b.jpg"]
    assert (a["label"], a["split_hint"], a["verdict"], a["white_box"]) == ("NORMAL", "train", "accepted", 0)
    assert (b["label"], b["label_raw"], b["split_hint"]) == ("TUBERCULOSIS", "TURBERCULOSIS", "test")
    # What a file is is told by its content, whatever its name.
    assert (b["format"], b["width"], b["bits"]) == ("png", 256, 8) and b["white_box"] > 0.04
    assert a["bytes"] == len(png(1)) and a["mean"] == pytest.approx(film(1).mean())


def test_what_cannot_be_read_is_quarantined_with_the_reason_and_not_stored(settings, tmp_path):
    whole = encoded(film(1), "JPEG")
    files = {
        "NORMAL/cut.jpg": whole[: len(whole) // 2],
        "NORMAL/page.png": b"<html>404</html>",
        "NORMAL/empty.png": b"",
        "NORMAL/picture.png": encoded(film(1), "GIF"),
        "NORMAL/film.png": encoded(film(1), save_all=True, append_images=[Image.fromarray(film(2))]),
        "NORMAL/giant.png": encoded(np.zeros((2000, 1500), np.uint8)),
        "NORMAL/heavy.png": png(3) + bytes(200_000),
        "NORMAL/good.png": png(4),
    }
    root = put_drop(settings, "drop", files)
    (tmp_path / "secret.png").write_bytes(png(5))
    (root / "NORMAL/link.png").symlink_to(tmp_path / "secret.png")
    limits = settings.replace(images={"max_file_bytes": 200_000, "max_pixels": 2_900_000})
    rows = ingested(settings, ingest_drop.ingest(ObjectStore(limits.store), limits, "drop"))
    assert verdicts(rows) == {
        "NORMAL/cut.jpg": ("quarantined", "truncated"),
        "NORMAL/page.png": ("quarantined", "not_an_image"),
        "NORMAL/empty.png": ("quarantined", "empty_file"),
        "NORMAL/picture.png": ("quarantined", "unsupported_format"),
        "NORMAL/film.png": ("quarantined", "animated"),
        "NORMAL/giant.png": ("quarantined", "too_many_pixels"),
        "NORMAL/heavy.png": ("quarantined", "too_large"),
        "NORMAL/good.png": ("accepted",),
        "NORMAL/link.png": ("quarantined", "symlink"),
    }
    assert [k for k in snapshot(settings) if k.startswith("images/")] == [
        process_file.image_key(rows.loc["NORMAL/good.png", "sha256"], "png")
    ]
    assert set(rows.loc[rows["verdict"] == "quarantined", "sha256"]) == {""}
    assert rows.loc["NORMAL/heavy.png", "bytes"] == len(files["NORMAL/heavy.png"])


def test_a_labels_csv_full_of_traps_reads_nothing_outside_the_drop(store, settings, tmp_path):
    put_drop(settings, "other", {"NORMAL/secret.png": png(1)})
    (tmp_path / "inbox/secret.png").write_bytes(png(2))
    (tmp_path / "secret.png").write_bytes(png(3))
    rows = [
        "../other/NORMAL/secret.png,normal",
        "../secret.png,normal",
        f"{tmp_path}/secret.png,normal",
        r"..\..\secret.png,normal",
        "images/../../secret.png,normal",
        "lost.png,covid",
        "good.png,covid",
        "strange.png,measles",
        "labels.csv,normal",
    ]
    files = {"labels.csv": csv(*rows), "good.png": png(4), "strange.png": png(5), "extra.png": png(6)}
    put_drop(settings, "drop", files)
    table = ingested(settings, ingest_drop.ingest(store, settings, "drop"))
    found = verdicts(table)
    outside = {f: v for f, v in found.items() if "secret" in f}
    assert len(outside) == 5 and set(outside.values()) == {("quarantined", "path_outside_drop")}
    assert {f: v for f, v in found.items() if "secret" not in f} == {
        "lost.png": ("quarantined", "file_missing"),
        "good.png": ("accepted",),
        "strange.png": ("quarantined", "unknown_label"),
        "extra.png": ("quarantined", "not_listed"),
        "labels.csv": ("quarantined", "file_missing"),
    }
    secrets = {measure.measure_image(png(n), settings.images)[0]["sha256"] for n in (1, 2, 3)}
    assert not secrets & {k.split("/")[-1].split(".")[0] for k in snapshot(settings)}


def test_file_names_of_any_bytes_are_taken(store, settings):
    root = put_drop(settings, "drop", {"NORMAL/<script>.png": png(1), "NORMAL/two\nlines.png": png(2)})
    (root / os.fsdecode(b"NORMAL/caf\xe9.png")).write_bytes(png(3))  # Latin-1, no valid UTF-8
    (root / os.fsdecode(b"\xe9t\xe9")).mkdir()
    (root / os.fsdecode(b"\xe9t\xe9/a.png")).write_bytes(png(4))
    rows = ingested(settings, ingest_drop.ingest(store, settings, "drop"))
    assert verdicts(rows) == {
        "NORMAL/<script>.png": ("accepted",),
        "NORMAL/two\nlines.png": ("accepted",),
        r"NORMAL/caf\udce9.png": ("accepted",),
        r"\udce9t\udce9/a.png": ("quarantined", "unknown_label"),
    }


@pytest.mark.parametrize(
    "files",
    [{"NORMAL/a.png": b"no image"}, {"labels.csv": csv("lost.png,normal")}],
    ids=["only damaged files", "only missing files"],
)
def test_a_drop_without_any_usable_image_gives_a_table_all_the_same(store, settings, files):
    put_drop(settings, "drop", files)
    rows = ingested(settings, ingest_drop.ingest(store, settings, "drop"))
    assert list(rows["verdict"]) == ["quarantined"] and [rows.index.name, *rows.columns] == FIXED
    assert rows["mean"].isna().all() and list(rows["width"]) == [0]


def test_an_empty_drop_and_a_missing_one_are_refused_and_write_nothing(store, settings):
    put_drop(settings, "empty", {".DS_Store": b"x"})
    for name, words in (("empty", "must hold images"), ("missing", "no drop of that name")):
        with pytest.raises(Refused, match=words):
            ingest_drop.ingest(store, settings, name)
    assert snapshot(settings) == {}


def test_progress_is_told_after_each_file(store, settings):
    put_drop(settings, "drop", {f"NORMAL/{i}.png": png(i) for i in range(3)})
    told = []
    ingest_drop.ingest(store, settings, "drop", lambda *done: told.append(done))
    assert told == [(1, 3), (2, 3), (3, 3)]


def mixed(settings):
    files = {"NORMAL/a.png": png(1), "NORMAL/b.jpg": resized(2), "COVID19/c.png": b"damaged", "d.png": png(3)}
    return put_drop(settings, "drop", files)


def test_running_twice_or_into_another_store_gives_the_same_bytes(store, settings):
    mixed(settings)
    batch = ingest_drop.ingest(store, settings, "drop")
    first = snapshot(settings)
    assert ingest_drop.ingest(store, settings, "drop") == batch
    assert snapshot(settings) == first
    ingest_drop.ingest(ObjectStore(elsewhere(settings).store), elsewhere(settings), "drop")
    assert snapshot(elsewhere(settings)) == first


def test_an_inbox_in_s3_gives_the_same_images_and_measurements_as_a_folder(store, settings):
    root = mixed(settings)
    local = ingested(settings, ingest_drop.ingest(store, settings, "drop"))
    away = settings.replace(inbox={"path": f"s3://{settings.store.bucket}/inbox"}, store={"prefix": "away/"})
    for path in (p for p in root.rglob("*") if p.is_file()):
        key = f"inbox/drop/{path.relative_to(root).as_posix()}"
        store.client.put_object(Bucket=settings.store.bucket, Key=key, Body=path.read_bytes())
    assert inbox.list_new_drops(ObjectStore(away.store), away.inbox) == ["drop"]
    remote = ingested(away, ingest_drop.ingest(ObjectStore(away.store), away, "drop"))
    assert remote.to_json() == local.to_json()
    stored = {k for k in snapshot(away) if k.startswith("images/")}
    assert stored == {k for k in snapshot(settings) if k.startswith("images/")} and len(stored) == 3


def test_only_where_something_is_to_be_done_it_is_told_of_the_beginning(store, settings):
    put_drop(settings, "drop", {"NORMAL/a.png": png(1)})
    begun = []
    for _ in range(2):
        ingest_drop.ingest(store, settings, "drop", on_start=lambda: begun.append(1))
    assert begun == [1]
