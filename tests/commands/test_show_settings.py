"""`cxr-ml settings`: what a person and a script see of each setting."""

import json

import pytest
from cli_calls import call

from cxr_ml import settings


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_each_setting_is_shown_with_its_value_and_where_it_comes_from(empty_folder, monkeypatch):
    (empty_folder / "cxr.toml").write_text('[mail]\nrecipients = ["team@hospital.example"]\n')
    monkeypatch.setenv("CXR_PROFILE", "demo")
    monkeypatch.setenv("CXR_TRAINING__SEED", "7")
    status, out, _ = call("settings", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert status == 0 and list(rows) == settings.names()
    assert rows["training.seed"] == {"name": "training.seed", "value": 7, "source": "environment"}
    assert rows["mail.recipients"] == {
        "name": "mail.recipients",
        "value": ["team@hospital.example"],
        "source": "cxr.toml",
    }
    assert rows["training.architectures"]["source"].endswith("profiles/demo.toml")
    assert rows["gate.macro_f1_floor"]["source"] == "default"


def test_no_secret_is_shown(monkeypatch):
    monkeypatch.setenv("CXR_INBOX__PATIENT_SALT", "grain-of-salt")
    monkeypatch.setenv("CXR_MAIL__SMTP_PASSWORD", "open-sesame")
    for arguments in ((), ("--json",)):
        _, out, _ = call("settings", *arguments)
        assert "grain-of-salt" not in out and "open-sesame" not in out and "(secret)" in out


def test_settings_that_cannot_be_used_end_with_status_2_and_the_name(monkeypatch):
    monkeypatch.setenv("CXR_TRAINING__SEED", "-1")
    status, out, err = call("settings")
    assert (status, out) == (2, "") and "training.seed in environment" in err
