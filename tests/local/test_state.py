import json
import os
import stat
import subprocess
import sys

import pytest

from cxr_ml.errors import Refused
from local import state


def test_secrets_are_generated_once_and_private(tmp_path):
    first = state.load_secrets(tmp_path)
    assert state.load_secrets(tmp_path) == first
    assert all(len(value) >= 16 for value in first.values())
    assert len(set(first.values())) == len(first)
    assert stat.S_IMODE((tmp_path / "secrets.json").stat().st_mode) == 0o600


def test_two_states_share_no_secret(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    a, b = state.load_secrets(tmp_path / "a"), state.load_secrets(tmp_path / "b")
    assert not set(a.values()) & set(b.values())


def test_a_private_file_is_never_readable_by_others_even_where_it_replaces_one_that_was(tmp_path):
    path = tmp_path / "env"
    path.write_text("old")
    path.chmod(0o644)
    state.write_private_file(path, "new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["env"]


def test_a_second_holder_is_refused_with_the_first_ones_process(tmp_path):
    code = (
        "import sys, pathlib, local.state as s; s.hold(pathlib.Path(sys.argv[1])); print('held', flush=True); input()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "s")],
        cwd=state.REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(Refused, match=f"up already.*process {holder.pid}"):
            state.hold(tmp_path / "s")
        with pytest.raises(Refused, match="up already"):
            state.clean(tmp_path / "s")
        assert (tmp_path / "s").is_dir()
    finally:
        holder.communicate(b"\n")
    state.hold(tmp_path / "s")


def test_the_folder_is_made_for_its_owner_alone(tmp_path):
    state.hold(tmp_path / "s")
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o700


def test_clean_removes_what_make_run_made_and_nothing_else(tmp_path):
    ours, foreign = tmp_path / "ours", tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    os.close(state.hold(ours))
    state.load_secrets(ours)
    assert state.clean(ours) is True
    assert not ours.exists()
    assert state.clean(ours) is False
    with pytest.raises(Refused, match="other files"):
        state.clean(foreign)
    with pytest.raises(Refused, match="other files"):
        state.hold(foreign)
    assert (foreign / "thesis.txt").read_text() == "years of work"


def test_a_cache_of_the_command_line_is_no_obstacle(tmp_path):
    (tmp_path / "s" / "cache").mkdir(parents=True)
    state.hold(tmp_path / "s")


def test_secrets_are_json_that_a_person_can_read(tmp_path):
    state.load_secrets(tmp_path)
    assert "ui_password" in json.loads((tmp_path / "secrets.json").read_text())
