"""Every setting, typed, in sections.

`load` lays the sources over each other; the later one in this list wins:

1. the defaults below: the published method, on a machine with a GPU;
2. the profile that `CXR_PROFILE` names: a file of profiles/ without its ending, or the path of a TOML file;
3. `cxr.toml` in the working directory, or the TOML file that `CXR_CONFIG` names;
4. variables such as `CXR_TRAINING__BATCH_SIZE` or `CXR_CLASSES`; lists and tables are JSON;
5. what the caller hands in: options of a command, fields of the trigger form.

`cxr-ml settings` shows each value and where it comes from.
"""

import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from cxr_ml.errors import Refused

# Spelling in a drop -> label, compared after case, spaces, '-' and '_' are removed. More: [inbox.label_spellings].
LABEL_SPELLINGS = {
    "normal": "NORMAL",
    "nofinding": "NORMAL",
    "nofindings": "NORMAL",
    "covid19": "COVID19",
    "covid": "COVID19",
    "pneumonia": "PNEUMONIA",
    "tuberculosis": "TUBERCULOSIS",
    "turberculosis": "TUBERCULOSIS",
    "tb": "TUBERCULOSIS",
}
REPOSITORY = Path(__file__).parents[1]
SECRETS = ("inbox.patient_salt", "mail.smtp_password")  # never shown

# Variables that are read elsewhere: by `make run`, docker's files, tests and benchmarks.
_OTHER_VARIABLES = {
    "CXR_AIRFLOW_DB",
    "CXR_API_SECRET",
    "CXR_BROKER_PASSWORD",
    "CXR_CONFIG",
    "CXR_FERNET_KEY",
    "CXR_INBOX_FOLDER",
    "CXR_JWT_SECRET",
    "CXR_LOCAL",
    "CXR_POSTGRES_PASSWORD",
    "CXR_PROFILE",
    "CXR_S3_ACCESS_KEY",
    "CXR_S3_SECRET_KEY",
    "CXR_UI_PASSWORD",
    "CXR_UI_PORT",
    "CXR_XRAYS",
}
# A new one is a line in ARCHITECTURES of cxr_ml/training/backbones.py as well.
Architecture = Literal["inception_v3", "resnet101_v2", "mobilenet_v2", "densenet121", "light"]
Share = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StoreSettings(_Section):
    """[store]: the bucket that holds everything."""

    bucket: str = "cxr"  # it must exist
    prefix: str = ""  # of all keys in the bucket: "" or ending in "/"
    endpoint_url: str | None = None  # address of an S3-compatible server; None: AWS
    aws_conn_id: str = ""  # Airflow connection with the credentials; "": boto3's own chain


class InboxSettings(_Section):
    """[inbox]: where drops arrive, and how their files and labels are read."""

    path: str = "inbox"  # folder, or s3://bucket/prefix, whose sub-folders and archives are the drops
    label_spellings: dict[str, str] = LABEL_SPELLINGS  # added to the usual ones
    patient_salt: str = ""  # mixed into the hash that replaces a patient id; secret, never changed; "": no patients
    file_names: Literal["keep", "hash"] = "keep"  # "hash": of every file; for names that hold a patient undeclared
    max_archive_bytes: int = Field(20_000_000_000, gt=0)  # an archive that unpacks to more is refused
    max_drop_files: int = Field(500_000, gt=0)  # files of an archive, rows of a labels.csv; more are refused
    shard_files: int = Field(5000, ge=1)  # files of a drop that are ingested as one piece, by one task of Airflow
    ingest_tasks: int = Field(1, ge=1)  # such pieces at the same time in a run of Airflow: one per worker machine

    @field_validator("label_spellings")
    @classmethod
    def _beside_the_usual_spellings(cls, spellings: dict[str, str]) -> dict[str, str]:
        return LABEL_SPELLINGS | spellings


class ImageSettings(_Section):
    """[images]: limits on the file of one image."""

    max_file_bytes: int = Field(64_000_000, gt=0)  # larger files are quarantined unread
    max_pixels: int = Field(50_000_000, gt=0)  # larger images are quarantined undecoded


class ValidationSettings(_Section):
    """[validation]: the suites, and what counts as a copy of an image."""

    expectations: Path = REPOSITORY / "expectations"  # folder of images.json, classes.json, dataset.json
    duplicate_bits: int = Field(19, ge=0, le=64)  # images whose hashes differ in at most so many bits are compared
    duplicate_correlation: float = Field(0.92, gt=0, le=1)  # of pixels; at least so alike: the same image


class DatasetSettings(_Section):
    """[dataset]: splits, and the probes for shortcuts."""

    test_fraction: float = Field(0.2, gt=0, lt=1)  # of the groups whose drop does not say
    validation_fraction: float = Field(0.15, gt=0, lt=1)  # of the groups that are not test
    # How much a probe that sees no lungs may know of the label: 0 is no better than guessing, 1 always right.
    shortcut_limit: float = Field(0.25, ge=0, le=1)  # warned of above


class TrainingSettings(_Section):
    """[training]: networks and hyper-parameters. All but `architectures` are part of a model's hash."""

    architectures: tuple[Architecture, ...] = ("inception_v3", "resnet101_v2")
    weights: Literal["imagenet", "none"] = "imagenet"  # "none": every layer is trained from scratch
    warm_start: bool = False  # begin with the champion's weights where it is of the same architecture
    image_size: int = Field(256, ge=32, le=1024)  # pixels, square
    batch_size: int = Field(128, ge=1, le=4096)  # images per step
    head_epochs: int = Field(30, ge=1, le=1000)  # epochs with the backbone frozen (all layers when from scratch)
    fine_tune_epochs: int = Field(30, ge=0, le=1000)  # epochs with everything trained
    head_learning_rate: float = Field(1e-3, gt=0, le=1)
    fine_tune_learning_rate: float = Field(1e-5, gt=0, le=1)
    fine_tune_decay: bool = True  # it falls along half a cosine to the last epoch, which is kept; the study's stays
    patience: int = Field(5, ge=1, le=1000)  # epochs without a better validation loss that end a stage of constant rate
    dropout: float = Field(0.5, ge=0, lt=1)  # share dropped before the softmax
    head_views: int = Field(4, ge=0, le=64)  # views of an image that the frozen backbone sees, once; 0: one per epoch
    freeze_normalisation: bool = True  # batch normalisation of a pretrained backbone keeps its statistics and weights
    corrupted_share: float = Field(0.6, ge=0, le=1)  # of the views: in another sharpness, contrast, encoding; study: 0
    seed: int = Field(0, ge=0, le=2**31 - 1)


class GateSettings(_Section):
    """[gate]: what a candidate must reach on the test split."""

    recall_floors: dict[str, Share] = {"COVID19": 0.95, "PNEUMONIA": 0.90, "NORMAL": 0.70}
    f1_floors: dict[str, Share] = {"COVID19": 0.85, "PNEUMONIA": 0.85}
    macro_f1_floor: float = Field(0.85, ge=0, le=1)
    min_test_support: int = Field(30, ge=1)  # test images per class
    floors_on_lower_bound: tuple[str, ...] = ()  # e.g. "recall COVID19": whose interval's lower bound must meet it
    # How far below the champion's a figure may lie, at the lower end of the 95 % interval of the paired difference
    margins: dict[str, Annotated[float, Field(ge=0, lt=1)]] = {"recall COVID19": 0.05, "recall PNEUMONIA": 0.05}
    corruption_limit: float = Field(0.05, ge=0, le=1)  # macro F1 lost on corrupted test images, at most
    lungs_hidden_limit: float = Field(0.8, ge=0, le=1)  # balanced accuracy with the lungs blacked out, at most
    approval: bool = False  # whether a human must approve what passed


class MailSettings(_Section):
    """[mail]: the mail server, and who may get mail."""

    smtp_host: str = "localhost"
    smtp_port: int = Field(25, gt=0, lt=65536)
    smtp_starttls: bool = False
    smtp_user: str = ""  # "": no login
    smtp_password: str = ""
    smtp_conn_id: str = ""  # Airflow connection used instead of the five above
    smtp_timeout: float = Field(20.0, gt=0)  # seconds
    sender: str = "cxr@localhost"
    allowed: tuple[str, ...] = ("radiology-team@localhost",)  # only these addresses ever get mail
    recipients: tuple[str, ...] = ("radiology-team@localhost",)  # by default; all of them from `allowed`
    ui_url: str = ""  # address of the Airflow UI for links in mails; "": no links


class Settings(BaseSettings):
    """All settings. Made by `load`; `Settings()` has the defaults alone and reads nothing."""

    model_config = SettingsConfigDict(env_prefix="CXR_", env_nested_delimiter="__", extra="forbid", frozen=True)

    classes: tuple[str, ...] = ("NORMAL", "COVID19", "PNEUMONIA")  # order of the model's outputs
    cache_dir: Path = Path(".local/cache")  # decoded images, listed and unpacked drops; may be deleted between runs
    weights_dir: Path | None = None  # folder of <architecture>_notop.weights.h5, instead of Keras's download
    store: StoreSettings = StoreSettings()
    inbox: InboxSettings = InboxSettings()
    images: ImageSettings = ImageSettings()
    validation: ValidationSettings = ValidationSettings()
    dataset: DatasetSettings = DatasetSettings()
    training: TrainingSettings = TrainingSettings()
    gate: GateSettings = GateSettings()
    mail: MailSettings = MailSettings()

    def replace(self, **changes: Any) -> "Settings":  # noqa: ANN401
        """Returns a copy with other values, e.g. `settings.replace(training={"seed": 3})`; they are not validated."""
        return self.model_copy(
            update={
                name: section.model_copy(update=value)
                if isinstance(section := getattr(self, name), _Section)
                else value
                for name, value in changes.items()
            }
        )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Returns the one source that pydantic looks at: what `Settings` is called with."""
        return (init_settings,)  # `load` reads the others, so that it can say where a value comes from


class Source(NamedTuple):
    """One place that settings come from."""

    name: str  # for people: a file, "environment", "command"
    values: dict[str, Any]  # nested as the sections are

    def holds(self, path: str) -> bool:
        """Whether this source says anything of a setting, e.g. "training.seed", or of a part of it."""
        values: Any = self.values
        for key in path.split("."):
            if isinstance(values, list | tuple):
                return True
            if not isinstance(values, dict) or key not in values:
                return False
            values = values[key]
        return True


class Explained(NamedTuple):
    """A setting, its value and the name of the source that it comes from."""

    name: str
    value: Any
    source: str


def load(**given: Any) -> Settings:  # noqa: ANN401 - of as many types as there are settings
    """Returns the settings that all sources together make.

    Args:
        **given: values of the caller, which win; a section is a dict, None means not given.

    Raises:
        Refused: a value of the wrong type or out of range, an unknown name, a floor for an unknown class, or a file
            that is missing or no TOML.
    """
    return _combine(_sources(given))


def explain() -> list[Explained]:
    """Returns each setting with its value and where it comes from; secrets are not shown.

    Raises:
        Refused: as `load`.
    """
    sources = _sources({})
    settings = _combine(sources)
    rows = []
    for name, value in _flat(settings):
        shown = "(secret)" if name in SECRETS and value else value
        rows.append(Explained(name, shown, _find_origin(sources, name) or "default"))
    return rows


def _flat(settings: Settings) -> Iterator[tuple[str, Any]]:
    for name in Settings.model_fields:
        value = getattr(settings, name)
        if isinstance(value, _Section):
            yield from ((f"{name}.{field}", getattr(value, field)) for field in type(value).model_fields)
        else:
            yield name, value


def names() -> list[str]:
    """Returns the names of all settings, e.g. "training.seed"."""
    return [name for name, _ in _flat(Settings())]


def _sources(given: Mapping[str, Any]) -> list[Source]:
    files = []
    if profile := os.environ.get("CXR_PROFILE"):
        path = Path(profile)
        files.append(path if path.suffix == ".toml" else REPOSITORY / "profiles" / f"{profile}.toml")
    if config := os.environ.get("CXR_CONFIG"):
        files.append(Path(config))
    elif Path("cxr.toml").is_file():
        files.append(Path("cxr.toml"))
    return [*map(_file, files), Source("environment", _environment()), Source("command", _without_none(given))]


def _file(path: Path) -> Source:
    if not path.is_file():
        raise Refused(f"CXR_CONFIG and CXR_PROFILE must name readable TOML files. Received: {str(path)!r}")
    try:
        return Source(str(path), tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Refused(f"{path} must be a TOML file in UTF-8. Received: {error}") from None


def _environment() -> dict[str, Any]:
    variables = {f"CXR_{name.upper().replace('.', '__')}" for name in names()}
    known = variables | _OTHER_VARIABLES
    if unknown := sorted(n for n in os.environ if n.upper().startswith("CXR_") and n.upper() not in known):
        raise Refused(
            "Variables that begin with CXR_ must be settings, as CXR_TRAINING__SEED is; `cxr-ml settings` shows all. "
            f"Received: {', '.join(unknown)}{_near(unknown[0].upper(), known)}"
        )
    try:
        return EnvSettingsSource(Settings)()
    except SettingsError as error:
        raise Refused(f"Lists and tables in CXR_* variables must be JSON, as in '[\"light\"]'. {error}") from None


def _find_origin(sources: list[Source], name: str) -> str | None:
    """The name of the source that a setting comes from; None: the defaults."""
    return next((source.name for source in reversed(sources) if source.holds(name)), None)


def _without_none(given: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in given.items()
        if value is not None
    }


def _combine(sources: list[Source]) -> Settings:
    values: dict[str, Any] = {}
    for source in sources:
        values = _over(values, source.values)
    try:
        settings = Settings(**values)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            name = ".".join(map(str, item["loc"]))
            origin = _find_origin(sources, name)
            place = f"{name} in {origin}" if origin else name
            lines.append(f"  {place}: {item['msg']}. Received: {item['input']!r}{_hint(item)}")
        raise Refused("These settings cannot be used:\n" + "\n".join(lines)) from None
    _check_gate(settings, sources)
    return settings


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`below` with the values of `above`; sections are merged, tables such as the floors are replaced as a whole."""
    merged = dict(below)
    for key, value in above.items():
        is_section = isinstance(Settings.model_fields[key].default, _Section) if key in Settings.model_fields else False
        merged[key] = {**below.get(key, {}), **value} if is_section and isinstance(value, dict) else value
    return merged


def _hint(item: Any) -> str:  # noqa: ANN401 - pydantic's ErrorDetails
    name = str(item["loc"][-1])
    if item["type"] == "extra_forbidden":
        own = [n for n in names() if n.rpartition(".")[2] == name]
        return f". Is {own[0]} meant?" if own else _near(".".join(map(str, item["loc"])), names())
    if item["type"] == "literal_error" and "architectures" in item["loc"]:
        return _near(str(item["input"]), get_args(Architecture))
    return ""


def _near(word: str, known: Iterable[str]) -> str:
    near = get_close_matches(word, list(known), 1)
    return f". Is {near[0]} meant?" if near else ""


def figures(classes: Iterable[str]) -> list[str]:
    """Returns the figures of an evaluation by the names that people read, e.g. "recall COVID19" and "macro F1"."""
    of_class = ("recall", "precision", "specificity", "F1", "AUC")
    of_all = ["macro F1", "accuracy", "log loss", "Brier score", "calibration error"]
    return [f"{figure} {label}" for figure in of_class for label in classes] + of_all


def _check_gate(settings: Settings, sources: list[Source]) -> None:
    """Refuses floors, margins and lower bounds that no check would look at, and tables that drop a floor."""
    gate, default = settings.gate, GateSettings()
    floors = [*(f"recall {c}" for c in gate.recall_floors), *(f"F1 {c}" for c in gate.f1_floors), "macro F1"]
    for name, received, known, needed in (
        ("recall_floors", gate.recall_floors, settings.classes, default.recall_floors),
        ("f1_floors", gate.f1_floors, settings.classes, default.f1_floors),
        ("margins", gate.margins, figures(settings.classes), ()),
        ("floors_on_lower_bound", gate.floors_on_lower_bound, floors, ()),
    ):
        source = _find_origin(sources, f"gate.{name}")
        if source is None:
            continue
        if unknown := [key for key in received if key not in known]:
            raise Refused(
                f"gate.{name} in {source} must name only {', '.join(known)}. "
                f"Received: {', '.join(unknown)}{_near(unknown[0], known)}"
            )
        if dropped := [key for key in needed if key in settings.classes and key not in received]:
            raise Refused(
                f"gate.{name} in {source} replaces the whole table and must keep a floor for {', '.join(dropped)}. "
                f"Received: {received}. To do without a floor, set it to 0."
            )
