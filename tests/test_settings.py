"""Settings: where each value comes from, and that what cannot be used is refused by name."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from cxr_ml import settings
from cxr_ml.errors import Refused
from cxr_ml.settings import Settings

REPOSITORY = Path(__file__).parents[1]
PROFILES = sorted((REPOSITORY / "profiles").glob("*.toml"))


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch) -> Path:
    """A working folder without cxr.toml, and no CXR_* variable of the caller's."""
    for name in [n for n in os.environ if n.upper().startswith("CXR_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def configured(folder: Path, monkeypatch, text: str) -> Path:
    """`text` as the file that CXR_CONFIG names."""
    path = folder / "team.toml"
    path.write_text(text)
    monkeypatch.setenv("CXR_CONFIG", str(path))
    return path


def test_without_file_and_variables_the_published_method_is_trained():
    s = settings.load()
    assert s.classes == ("NORMAL", "COVID19", "PNEUMONIA")
    assert s.architectures == ("inception_v3", "resnet101_v2") and s.weights == "imagenet"
    assert (s.image_size, s.batch_size, s.head_epochs, s.fine_tune_epochs, s.patience) == (256, 128, 30, 30, 5)
    assert (s.head_learning_rate, s.fine_tune_learning_rate, s.dropout) == (1e-3, 1e-5, 0.5)
    assert s.recall_floors == {"COVID19": 0.95, "PNEUMONIA": 0.90, "NORMAL": 0.70}


def test_a_variable_beats_the_file_and_the_file_beats_the_default(nowhere, monkeypatch):
    (nowhere / "cxr.toml").write_text("image_size = 96\nbatch_size = 8\n")
    monkeypatch.setenv("CXR_IMAGE_SIZE", "64")
    s = settings.load()
    assert (s.image_size, s.batch_size, s.head_epochs) == (64, 8, Settings.model_fields["head_epochs"].default)


def test_an_override_beats_the_variable_unless_it_is_none(monkeypatch):
    monkeypatch.setenv("CXR_IMAGE_SIZE", "64")
    monkeypatch.setenv("CXR_SEED", "7")
    s = settings.load(image_size=128, seed=None)
    assert (s.image_size, s.seed) == (128, 7)


def test_the_file_that_is_named_is_read_instead_of_the_one_in_the_folder(nowhere, monkeypatch):
    (nowhere / "cxr.toml").write_text("seed = 1\nbatch_size = 8\n")
    configured(nowhere, monkeypatch, "seed = 2\n")
    s = settings.load()
    assert (s.seed, s.batch_size) == (2, 128)


@pytest.mark.parametrize("path", ["missing.toml", "."])
def test_a_named_file_that_is_not_there_is_refused_by_name(monkeypatch, path):
    monkeypatch.setenv("CXR_CONFIG", path)
    with pytest.raises(Refused, match=f"CXR_CONFIG must name a readable TOML file. Received: '{path}'"):
        settings.load()


@pytest.mark.parametrize("text", ["seed = = 3", "\x00", "[recall_floors\nCOVID19 = 0.9"])
def test_a_file_that_is_no_toml_is_refused_by_name(nowhere, monkeypatch, text):
    path = configured(nowhere, monkeypatch, text)
    with pytest.raises(Refused, match="must be a TOML file") as refused:
        settings.load()
    assert str(path) in str(refused.value)


def test_a_file_that_is_not_utf_8_is_refused(nowhere):
    (nowhere / "cxr.toml").write_bytes('mail_from = "röntgen@localhost"'.encode("latin-1"))
    with pytest.raises(Refused, match=r"cxr\.toml must be a TOML file in UTF-8"):
        settings.load()


def test_an_unknown_name_in_the_file_is_refused_by_name(nowhere, monkeypatch):
    configured(nowhere, monkeypatch, "image_siez = 64\n")
    with pytest.raises(Refused, match=r"image_siez: .*Received: 64"):
        settings.load()


def test_an_unknown_variable_is_refused_with_the_name_that_may_be_meant(monkeypatch):
    monkeypatch.setenv("CXR_MACRO_F1_FLOR", "0.99")
    with pytest.raises(Refused, match=r"Received: CXR_MACRO_F1_FLOR\. Was CXR_MACRO_F1_FLOOR meant\?"):
        settings.load()


@pytest.mark.parametrize("floor", ["-1", "95", "NaN"])
@pytest.mark.parametrize("name", ["recall_floors", "f1_floors"])
def test_a_floor_is_a_share(monkeypatch, name, floor):
    monkeypatch.setenv(f"CXR_{name.upper()}", f'{{"COVID19": {floor}}}')
    with pytest.raises(Refused, match=rf"{name}\.COVID19: .*Received: "):
        settings.load()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_size", "31"), ("image_size", "wide"), ("batch_size", "0"), ("dropout", "1"), ("test_fraction", "0"),
        ("macro_f1_floor", "1.1"), ("macro_f1_floor", "nan"),
        ("min_test_support", "0"), ("lungs_hidden_limit", "1.01"),
        ("head_learning_rate", "0"), ("smtp_port", "65536"), ("seed", "-1"), ("weights", "random"),
        ("duplicate_correlation", "0"), ("approval", "perhaps"),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_with_its_name_and_what_was_received(monkeypatch, name, value):
    monkeypatch.setenv(f"CXR_{name.upper()}", value)
    with pytest.raises(Refused, match=rf"  {name}: .*Received: '{value}'"):
        settings.load()


def test_all_values_that_cannot_be_used_are_told_at_once(monkeypatch):
    monkeypatch.setenv("CXR_IMAGE_SIZE", "1")
    monkeypatch.setenv("CXR_PATIENCE", "0")
    with pytest.raises(Refused, match=r"(?s)image_size: .*patience: "):
        settings.load()


def test_a_list_in_a_variable_is_json(monkeypatch):
    monkeypatch.setenv("CXR_MAIL_TO", '["a@hospital.example", "b@hospital.example"]')
    assert settings.load().mail_to == ("a@hospital.example", "b@hospital.example")


def test_a_list_in_a_variable_that_is_no_json_is_refused_by_name(monkeypatch):
    monkeypatch.setenv("CXR_ARCHITECTURES", "light")
    with pytest.raises(Refused, match=r'must be JSON, as in \'\["light"\]\'.*"architectures"'):
        settings.load()


def test_spellings_of_a_site_are_added_to_the_usual_ones(nowhere, monkeypatch):
    configured(nowhere, monkeypatch, '[label_spellings]\npneu = "PNEUMONIA"\ntb = "OTHER"\n')
    spellings = settings.load().label_spellings
    assert spellings == settings.LABEL_SPELLINGS | {"pneu": "PNEUMONIA", "tb": "OTHER"}
    assert settings.LABEL_SPELLINGS["tb"] == "TUBERCULOSIS"


def test_floors_in_the_file_are_numbers_per_class(nowhere, monkeypatch):
    configured(nowhere, monkeypatch, "[recall_floors]\nCOVID19 = 0.97\nNORMAL = 0.8\n")
    assert settings.load().recall_floors == {"COVID19": 0.97, "NORMAL": 0.8}


@pytest.mark.parametrize("profile", PROFILES, ids=lambda p: p.stem)
def test_every_profile_of_the_repository_can_be_used(monkeypatch, profile):
    monkeypatch.setenv("CXR_CONFIG", str(profile))
    s = settings.load()
    assert s.model_fields_set >= {"architectures", "image_size", "head_epochs"}
    for name in (
        "recall_floors",
        "f1_floors",
        "macro_f1_floor",
        "min_test_support",
        "margins",
        "disguise_limit",
        "lungs_hidden_limit",
    ):
        assert getattr(s, name) == Settings.model_fields[name].default, "no profile lowers the gate"


def test_the_profiles_are_there():
    assert [p.stem for p in PROFILES] == ["cpu", "demo", "paper"]


def test_the_profile_paper_departs_from_the_study_in_nothing(monkeypatch):
    monkeypatch.setenv("CXR_CONFIG", str(REPOSITORY / "profiles" / "paper.toml"))
    s = settings.load()
    assert s.architectures == ("inception_v3", "resnet101_v2") and s.weights == "imagenet"
    assert (s.image_size, s.batch_size, s.head_epochs, s.fine_tune_epochs, s.patience) == (256, 128, 30, 30, 5)
    assert (s.head_learning_rate, s.fine_tune_learning_rate, s.fine_tune_decay, s.dropout) == (1e-3, 1e-5, False, 0.5)
    assert (s.head_views, s.freeze_normalisation, s.disguised, s.warm_start) == (0, False, 0, False)
    assert s.model_fields_set >= {"weights", "warm_start"}, "no default that becomes another changes it"


def test_settings_cannot_be_changed_after_they_were_read():
    with pytest.raises(ValidationError, match="frozen"):
        settings.load().macro_f1_floor = 0.0


def test_default_recipients_are_allowed_ones():
    s = settings.load()
    assert s.mail_to and set(s.mail_to) <= set(s.mail_allowed)


def test_the_shipped_expectations_are_found_from_any_folder():
    assert {p.name for p in settings.load().expectations.glob("*.json")} == {
        "classes.json", "dataset.json", "images.json",
    }  # fmt: skip


def test_a_margin_below_zero_is_refused_by_the_name_of_its_figure(monkeypatch):
    monkeypatch.setenv("CXR_MARGINS", '{"macro F1": -0.01}')
    with pytest.raises(Refused, match=r"margins\.macro F1: .*Received: -0\.01"):
        settings.load()
