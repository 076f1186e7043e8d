import os

import pytest

from cxr_ml.errors import Refused
from local.drops import copy_drop, list_files


def accept(drop):
    """Refuses nothing: tests/local/test_preflight.py has what cannot be used."""


@pytest.fixture
def folders(tmp_path):
    source, inbox, copying = tmp_path / "2026-01-05", tmp_path / "inbox", tmp_path / "copying"
    for folder in (source / "train" / "NORMAL", inbox, copying):
        folder.mkdir(parents=True)
    (source / "train" / "NORMAL" / "a.png").write_bytes(b"one")
    (source / "readme.txt").write_bytes(b"three")
    os.utime(source / "readme.txt", (1_000_000_000, 1_000_000_000))
    return source, inbox, copying


def test_a_drop_arrives_whole_with_its_times_and_leaves_no_scratch(folders):
    source, inbox, copying = folders
    assert copy_drop(source, inbox, copying, accept) == ("2026-01-05", True)
    assert list_files(inbox / "2026-01-05") == {"train/NORMAL/a.png": 3, "readme.txt": 5}
    assert (inbox / "2026-01-05" / "readme.txt").stat().st_mtime == 1_000_000_000
    assert not list(copying.iterdir())


def test_the_same_drop_again_is_recognised_and_another_of_its_name_refused(folders):
    source, inbox, copying = folders
    copy_drop(source, inbox, copying, accept)
    assert copy_drop(source, inbox, copying, accept) == ("2026-01-05", False)
    (source / "new.png").write_bytes(b"more")
    with pytest.raises(Refused, match=r"another drop named '2026-01-05'.*Rename"):
        copy_drop(source, inbox, copying, accept)
    assert "new.png" not in list_files(inbox / "2026-01-05")


def test_links_and_special_files_stay_outside(folders, tmp_path):
    source, inbox, copying = folders
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key.png").write_bytes(b"private")
    (source / "link.png").symlink_to(secret / "key.png")
    (source / "linked").symlink_to(secret)
    (source / "gone.png").symlink_to(tmp_path / "nothing")
    os.mkfifo(source / "pipe.png")
    copy_drop(source, inbox, copying, accept)
    everything = {str(p.relative_to(inbox)) for p in inbox.rglob("*") if not p.is_dir()}
    assert everything == {"2026-01-05/train/NORMAL/a.png", "2026-01-05/readme.txt"}


def test_a_half_copy_of_an_earlier_run_does_not_get_in(folders):
    source, inbox, copying = folders
    (copying / "2026-01-05").mkdir()
    (copying / "2026-01-05" / "half.png").write_bytes(b"ha")
    copy_drop(source, inbox, copying, accept)
    assert "half.png" not in list_files(inbox / "2026-01-05")


def test_a_copy_that_breaks_off_leaves_the_inbox_as_it_was(folders, monkeypatch):
    source, inbox, copying = folders

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copy2", full)
    with pytest.raises(OSError, match="No space"):
        copy_drop(source, inbox, copying, accept)
    assert not list(inbox.iterdir())


def test_an_archive_arrives_as_the_file_it_is(folders, tmp_path):
    _, inbox, copying = folders
    archive = tmp_path / "week.tar.gz"
    archive.write_bytes(b"packed")
    os.utime(archive, (1_000_000_000, 1_000_000_000))
    assert copy_drop(archive, inbox, copying, accept) == ("week.tar.gz", True)
    assert (inbox / "week.tar.gz").read_bytes() == b"packed"
    assert (inbox / "week.tar.gz").stat().st_mtime == 1_000_000_000 and not list(copying.iterdir())
    assert copy_drop(archive, inbox, copying, accept) == ("week.tar.gz", False)
    archive.write_bytes(b"packed again")
    with pytest.raises(Refused, match=r"another drop named 'week\.tar\.gz'"):
        copy_drop(archive, inbox, copying, accept)
    archive.write_bytes(b"")
    with pytest.raises(Refused, match="must contain files"):
        copy_drop(archive, inbox, copying, accept)


def test_what_is_no_folder_of_files_is_refused_with_what_was_received(folders, tmp_path):
    source, inbox, copying = folders
    (tmp_path / "empty").mkdir()
    (tmp_path / ".hidden").mkdir()
    for wrong, message in [
        (source / "readme.txt", "must be a folder"),
        (tmp_path / "missing", "must be a folder.*missing"),
        (tmp_path / "empty", "must contain files"),
        (tmp_path / ".hidden", "visible name"),
        (tmp_path.root, "visible name"),
    ]:
        with pytest.raises(Refused, match=message):
            copy_drop(tmp_path / wrong, inbox, copying, accept)
    assert not list(inbox.iterdir())


def test_a_link_in_the_inbox_is_not_taken_for_the_drop(folders):
    source, inbox, copying = folders
    (inbox / source.name).symlink_to(source)
    with pytest.raises(Refused, match="another drop"):
        copy_drop(source, inbox, copying, accept)


def test_a_drop_that_no_run_can_use_is_refused_before_anything_is_copied(folders):
    source, inbox, copying = folders

    def refuse(drop):
        assert drop == source
        raise Refused("no label is known")

    with pytest.raises(Refused, match="no label is known"):
        copy_drop(source, inbox, copying, refuse)
    assert not list(inbox.iterdir()) and not list(copying.iterdir())
