"""`cxr-ml measure`: the table of ingest for any folder, without a store, fit for a spreadsheet."""

import csv as csv_module
import json
import os
from pathlib import Path

import pandas as pd
import pytest
from drop_samples import encoded, film, png
from typer.testing import CliRunner

from cxr_ml.cli import app
from cxr_ml.imaging import measure
from cxr_ml.ingest import tables
from cxr_ml.settings import Settings


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A messy folder, and no setting at all: neither store nor inbox, and no credentials."""
    monkeypatch.chdir(tmp_path)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    files = {
        "films/a.png": png(1),
        "films/deep/b.jpg": encoded(film(2), "JPEG"),
        "films/page.png": b"<html>",
        "films/empty.png": b"",
        "films/two\nlines.png": png(3),
        "=cmd().png": png(4),
        "secret.png": png(5),
    }
    for name, data in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "films" / os.fsdecode(b"\xe9.png")).write_bytes(png(6))
    (tmp_path / "films/link.png").symlink_to(tmp_path / "secret.png")
    os.mkfifo(tmp_path / "films/pipe.png")
    return tmp_path


def call(*args):
    result = CliRunner().invoke(app, ["measure", *map(str, args)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


REASONS = {
    "films/a.png": [],
    "films/deep/b.jpg": [],
    "films/empty.png": ["empty_file"],
    "films/link.png": ["symlink"],
    "films/page.png": ["not_an_image"],
    "films/pipe.png": ["special_file"],
    "films/two\nlines.png": [],
    r"films/\udce9.png": [],
}


def test_a_folder_is_measured_as_ingest_does_each_file_with_its_reason(folder):
    status, out, _ = call("films", "--json")
    rows = {row["file"]: row for row in json.loads(out)}
    assert status == 0 and {f: r["reasons"] for f, r in rows.items()} == REASONS
    assert list(rows["films/a.png"]) == list(tables.COLUMNS)
    measured = measure.measure_image(png(1), Settings().images)[0]
    assert {name: rows["films/a.png"][name] for name in measured} == measured
    assert rows["films/page.png"]["mean"] is None and rows["films/page.png"]["verdict"] == "quarantined"


def test_a_link_is_followed_where_it_is_named_and_files_and_folders_may_be_mixed(folder):
    _, out, _ = call("films/link.png", "films/deep", "--json")
    linked, deep = json.loads(out)
    assert linked["sha256"] == measure.measure_image(png(5), Settings().images)[0]["sha256"]
    assert deep["file"] == "films/deep/b.jpg"


@pytest.mark.parametrize("files", [2, 5000])
def test_a_parquet_file_holds_the_same_table_however_it_was_cut(folder, monkeypatch, files):
    monkeypatch.setenv("CXR_INBOX__SHARD_FILES", str(files))
    _, out, _ = call("films", "--out", "t.parquet", "--json")
    unread = {"empty_file": 1, "not_an_image": 1, "special_file": 1, "symlink": 1}
    assert json.loads(out) == {"files": 8, "unread": unread, "out": "t.parquet"}
    table = pd.read_parquet("t.parquet")
    assert list(table.columns) == list(tables.COLUMNS)
    assert {f: list(r) for f, r in zip(table["file"], table["reasons"], strict=True)} == REASONS


def test_a_csv_file_can_be_opened_in_a_spreadsheet_and_runs_nothing(folder):
    assert call("=cmd().png", "films", "--out", "t.csv")[0] == 0
    with open("t.csv", newline="", encoding="utf-8") as file:
        rows = list(csv_module.DictReader(file))
    assert rows[0]["file"] == "'=cmd().png"
    assert {r["file"]: r["reasons"].split() for r in rows[1:]} == REASONS
    assert float(rows[1]["mean"]) == measure.measure_image(png(1), Settings().images)[0]["mean"]
    assert not [c for row in rows for c in row.values() if c.startswith(("=", "+", "-", "@"))]


def test_for_people_there_is_a_table(folder):
    _, out, _ = call("films/a.png", "films/page.png")
    assert "256×256" in out and "not_an_im" in out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["lost"], "Received: 'lost'"),
        (["films", "--out", "t.xlsx"], "'t.xlsx'"),
        (["films", "--out", "lost/t.csv"], "'lost/t.csv'"),
        (["films", "--out", "folder.csv"], "'folder.csv'"),
    ],
)
def test_what_cannot_be_used_ends_with_status_2_and_writes_nothing(folder, args, words):
    Path("folder.csv").mkdir()
    before = sorted(Path().rglob("*"))
    status, out, err = call(*args, "--json")
    assert (status, out) == (2, "") and words in err
    assert sorted(Path().rglob("*")) == before
