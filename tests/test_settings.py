"""Settings: where each value comes from, and that what cannot be used is refused by name."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from cxr_ml import settings
from cxr_ml.errors import Refused
from cxr_ml.settings import GateSettings, Settings

REPOSITORY = Path(__file__).parents[1]
PROFILES = sorted((REPOSITORY / "profiles").glob("*.toml"))


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch) -> Path:
    """A working folder without cxr.toml, and no CXR_* variable of the caller's."""
    for name in [n for n in os.environ if n.upper().startswith("CXR_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def configure(folder: Path, monkeypatch, text: str) -> Path:
    """Writes `text` as the file that CXR_CONFIG names."""
    path = folder / "team.toml"
    path.write_text(text)
    monkeypatch.setenv("CXR_CONFIG", str(path))
    return path


def set_variable(monkeypatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"CXR_{name.upper().replace('.', '__')}", value)


def source_of(name: str) -> str:
    return next(row.source for row in settings.explain() if row.name == name)


def test_without_file_and_variables_the_published_method_is_trained():
    s = settings.load()
    t = s.training
    assert s.classes == ("NORMAL", "COVID19", "PNEUMONIA")
    assert t.architectures == ("inception_v3", "resnet101_v2") and t.weights == "imagenet"
    assert (t.image_size, t.batch_size, t.head_epochs, t.fine_tune_epochs, t.patience) == (256, 128, 30, 30, 5)
    assert (t.head_learning_rate, t.fine_tune_learning_rate, t.dropout) == (1e-3, 1e-5, 0.5)
    assert s.gate.recall_floors == {"COVID19": 0.95, "PNEUMONIA": 0.90, "NORMAL": 0.70}


def test_each_source_wins_over_the_one_below_and_leaves_its_other_values(empty_folder, monkeypatch):
    profile = empty_folder / "small.toml"
    profile.write_text("[training]\nimage_size = 32\nbatch_size = 4\nhead_epochs = 1\npatience = 2\nseed = 9\n")
    (empty_folder / "cxr.toml").write_text("[training]\nimage_size = 96\nbatch_size = 8\nhead_epochs = 3\n")
    monkeypatch.setenv("CXR_PROFILE", str(profile))
    monkeypatch.setenv("CXR_TRAINING__IMAGE_SIZE", "64")
    monkeypatch.setenv("CXR_TRAINING__BATCH_SIZE", "16")
    t = settings.load(training={"image_size": 128, "seed": None}).training
    assert (t.image_size, t.batch_size, t.head_epochs, t.patience, t.seed, t.dropout) == (128, 16, 3, 2, 9, 0.5)


def test_a_profile_is_named_without_its_ending(monkeypatch):
    monkeypatch.setenv("CXR_PROFILE", "demo")
    assert settings.load().training.architectures == ("light",)


def test_each_setting_is_explained_with_its_value_and_source(empty_folder, monkeypatch):
    path = configure(empty_folder, monkeypatch, "[training]\nseed = 3\n")
    monkeypatch.setenv("CXR_PROFILE", "demo")
    monkeypatch.setenv("CXR_GATE__MACRO_F1_FLOOR", "0.9")
    monkeypatch.setenv("CXR_INBOX__PATIENT_SALT", "not for any eye")
    rows = {row.name: row for row in settings.explain()}
    assert list(rows) == settings.names()
    assert (rows["training.seed"].value, rows["training.seed"].source) == (3, str(path))
    assert rows["gate.macro_f1_floor"].source == "environment" and rows["gate.approval"].source == "default"
    assert rows["training.batch_size"].source.endswith("profiles/demo.toml")
    assert "not for any eye" not in str(rows) and rows["inbox.patient_salt"].source == "environment"


def test_the_file_that_is_named_is_read_instead_of_the_one_in_the_folder(empty_folder, monkeypatch):
    (empty_folder / "cxr.toml").write_text("[training]\nseed = 1\nbatch_size = 8\n")
    configure(empty_folder, monkeypatch, "[training]\nseed = 2\n")
    t = settings.load().training
    assert (t.seed, t.batch_size) == (2, 128)


@pytest.mark.parametrize("variable", ["CXR_CONFIG", "CXR_PROFILE"])
@pytest.mark.parametrize("path", ["missing.toml", "folder.toml"])
def test_a_named_file_that_does_not_exist_is_refused_by_name(empty_folder, monkeypatch, variable, path):
    (empty_folder / "folder.toml").mkdir()
    monkeypatch.setenv(variable, path)
    with pytest.raises(Refused, match=f"CXR_CONFIG and CXR_PROFILE must name readable TOML files. Received: '{path}'"):
        settings.load()


@pytest.mark.parametrize("text", ["seed = = 3", "\x00", "[gate.recall_floors\nCOVID19 = 0.9"])
def test_a_file_that_is_no_toml_is_refused_by_name(empty_folder, monkeypatch, text):
    path = configure(empty_folder, monkeypatch, text)
    with pytest.raises(Refused, match="must be a TOML file") as refused:
        settings.load()
    assert str(path) in str(refused.value)


def test_a_file_that_is_not_utf_8_is_refused(empty_folder):
    (empty_folder / "cxr.toml").write_bytes('mail.sender = "röntgen@localhost"'.encode("latin-1"))
    with pytest.raises(Refused, match=r"cxr\.toml must be a TOML file in UTF-8"):
        settings.load()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[training]\nimage_siez = 64\n", r"training\.image_siez in .*team\.toml: .*Is training\.image_size meant\?"),
        ("image_size = 64\n", r"image_size in .*team\.toml: .*Received: 64\. Is training\.image_size meant\?"),
        ("[trainning]\nseed = 1\n", r"trainning in .*team\.toml: "),
        ('[training]\narchitectures = ["resnet101"]\n', r"team\.toml: .*'resnet101'\. Is resnet101_v2 meant\?"),
        ("training = 3\n", r"training in .*team\.toml: .*Received: 3"),
    ],
)
def test_an_unknown_name_is_refused_with_file_and_near_miss(empty_folder, monkeypatch, text, message):
    configure(empty_folder, monkeypatch, text)
    with pytest.raises(Refused, match=message):
        settings.load()


@pytest.mark.parametrize("name", ["CXR_GATE__MACRO_F1_FLOR", "CXR_MACRO_F1_FLOOR", "CXR_GATE__RECALL_FLOORS__COVID19"])
def test_an_unknown_variable_is_refused_by_name(monkeypatch, name):
    monkeypatch.setenv(name, "0.99")
    with pytest.raises(Refused, match=rf"Received: {name}\. Is CXR_GATE__\w+ meant\?"):
        settings.load()


@pytest.mark.parametrize("floor", ["-1", "95", "NaN"])
@pytest.mark.parametrize("name", ["gate.recall_floors", "gate.f1_floors"])
def test_a_floor_is_a_share(monkeypatch, name, floor):
    set_variable(monkeypatch, name, f'{{"COVID19": {floor}}}')
    with pytest.raises(Refused, match=rf"{name}\.COVID19 in environment: .*Received: "):
        settings.load()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("training.image_size", "31"),
        ("training.image_size", "wide"),
        ("training.batch_size", "0"),
        ("training.dropout", "1"),
        ("training.head_learning_rate", "0"),
        ("training.seed", "-1"),
        ("training.weights", "random"),
        ("dataset.test_fraction", "0"),
        ("gate.macro_f1_floor", "1.1"),
        ("gate.macro_f1_floor", "nan"),
        ("gate.min_test_support", "0"),
        ("gate.lungs_hidden_limit", "1.01"),
        ("gate.approval", "perhaps"),
        ("mail.smtp_port", "65536"),
        ("validation.duplicate_correlation", "0"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_name_and_what_was_received(monkeypatch, name, value):
    set_variable(monkeypatch, name, value)
    with pytest.raises(Refused, match=rf"  {name} in environment: .*Received: '{value}'"):
        settings.load()


def test_all_values_that_cannot_be_used_are_named_at_once(monkeypatch):
    monkeypatch.setenv("CXR_TRAINING__IMAGE_SIZE", "1")
    monkeypatch.setenv("CXR_TRAINING__PATIENCE", "0")
    with pytest.raises(Refused, match=r"(?s)training\.image_size .*training\.patience "):
        settings.load()


def test_a_list_in_a_variable_is_json(monkeypatch):
    monkeypatch.setenv("CXR_MAIL__RECIPIENTS", '["a@hospital.example", "b@hospital.example"]')
    assert settings.load().mail.recipients == ("a@hospital.example", "b@hospital.example")


def test_a_list_in_a_variable_that_is_no_json_is_refused(monkeypatch):
    monkeypatch.setenv("CXR_TRAINING__ARCHITECTURES", "light")
    with pytest.raises(Refused, match=r"training\.architectures in environment|must be JSON"):
        settings.load()


def test_spellings_of_a_site_are_added_to_the_usual_ones(empty_folder, monkeypatch):
    configure(empty_folder, monkeypatch, '[inbox.label_spellings]\npneu = "PNEUMONIA"\ntb = "OTHER"\n')
    spellings = settings.load().inbox.label_spellings
    assert spellings == settings.LABEL_SPELLINGS | {"pneu": "PNEUMONIA", "tb": "OTHER"}
    assert settings.LABEL_SPELLINGS["tb"] == "TUBERCULOSIS"


def test_floors_in_the_file_are_numbers_per_class(empty_folder, monkeypatch):
    configure(empty_folder, monkeypatch, "[gate.recall_floors]\nCOVID19 = 0.97\nNORMAL = 0.8\nPNEUMONIA = 0\n")
    assert settings.load().gate.recall_floors == {"COVID19": 0.97, "NORMAL": 0.8, "PNEUMONIA": 0}


@pytest.mark.parametrize("table", ["recall_floors", "f1_floors"])
def test_a_table_that_drops_a_floor_is_refused(empty_folder, monkeypatch, table):
    configure(empty_folder, monkeypatch, f"[gate.{table}]\nCOVID19 = 0.97\n")
    with pytest.raises(Refused, match=rf"gate\.{table} in .*team\.toml .*must keep a floor for PNEUMONIA"):
        settings.load()


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("[gate.recall_floors]\nCOVID = 0.9\nPNEUMONIA = 0.9\nNORMAL = 0.7\n", "COVID. Is COVID19 meant"),
        ('[gate.margins]\n"recall COVID" = 0.1\n', "recall COVID. Is recall COVID19 meant"),
        ('[gate.margins]\n"macro F1 score" = 0.1\n', "macro F1 score. Is macro F1 meant"),
        ('[gate]\nfloors_on_lower_bound = ["recall PNEUMONA"]\n', "recall PNEUMONA. Is recall PNEUMONIA meant"),
    ],
)
def test_a_limit_that_no_check_would_look_at_is_refused(empty_folder, monkeypatch, text, meant):
    configure(empty_folder, monkeypatch, text)
    with pytest.raises(Refused, match=rf"gate\.\w+ in .*team\.toml must name only .*Received: {meant}"):
        settings.load()


def test_margins_may_name_every_figure_of_an_evaluation():
    from cxr_ml.evaluation import metrics

    named = {metrics.name(f, c) for f in metrics.OF_CLASS for c in Settings().classes}
    assert set(settings.figures(Settings().classes)) == named | {metrics.name(f) for f in metrics.OF_ALL}


@pytest.mark.parametrize("profile", PROFILES, ids=lambda p: p.stem)
def test_no_profile_lowers_the_gate(monkeypatch, profile):
    monkeypatch.setenv("CXR_PROFILE", profile.stem)
    s = settings.load()
    assert s.training.model_fields_set >= {"architectures", "image_size", "head_epochs"}
    assert s.gate == GateSettings()


def test_the_profiles_are_those_of_the_documentation():
    assert [p.stem for p in PROFILES] == ["cpu", "demo", "paper"]


def test_the_profile_paper_departs_from_the_study_in_nothing(monkeypatch):
    monkeypatch.setenv("CXR_PROFILE", "paper")
    t = settings.load().training
    assert t.architectures == ("inception_v3", "resnet101_v2") and t.weights == "imagenet"
    assert (t.image_size, t.batch_size, t.head_epochs, t.fine_tune_epochs, t.patience) == (256, 128, 30, 30, 5)
    assert (t.head_learning_rate, t.fine_tune_learning_rate, t.fine_tune_decay, t.dropout) == (1e-3, 1e-5, False, 0.5)
    assert (t.head_views, t.freeze_normalisation, t.corrupted_share, t.warm_start) == (0, False, 0, False)
    assert t.model_fields_set >= {"weights", "warm_start"}, "no default that becomes another changes it"


def test_settings_cannot_be_changed_after_they_were_read():
    with pytest.raises(ValidationError, match="frozen"):
        settings.load().gate.macro_f1_floor = 0.0


def test_a_copy_with_other_values_leaves_the_rest():
    s = Settings().replace(classes=("A", "B"), training={"seed": 4})
    assert (s.classes, s.training.seed, s.training.batch_size, s.gate) == (("A", "B"), 4, 128, GateSettings())


def test_default_recipients_are_allowed_ones():
    s = settings.load()
    assert s.mail.recipients and set(s.mail.recipients) <= set(s.mail.allowed)


def test_the_shipped_expectations_are_found_from_any_folder():
    names = {p.name for p in settings.load().validation.expectations.glob("*.json")}
    assert names == {"classes.json", "dataset.json", "images.json"}


def test_a_margin_below_zero_is_refused_by_the_name_of_its_figure(monkeypatch):
    monkeypatch.setenv("CXR_GATE__MARGINS", '{"macro F1": -0.01}')
    with pytest.raises(Refused, match=r"gate\.margins\.macro F1 in environment: .*Received: -0\.01"):
        settings.load()
