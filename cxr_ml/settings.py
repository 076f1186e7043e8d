"""Every setting, typed. Read from `CXR_*` variables first, then from `cxr.toml` or the file named by `CXR_CONFIG`."""

import os
from difflib import get_close_matches
from pathlib import Path
from tomllib import TOMLDecodeError
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from cxr_ml.errors import Refused

# Keys are compared after case, spaces, '-' and '_' are removed. Extend it in cxr.toml under [label_spellings].
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


# Variables that are read elsewhere: by `make run`, docker's files, tests and benchmarks.
_NO_SETTINGS = {
    "CXR_CONFIG", "CXR_LOCAL", "CXR_PROFILE", "CXR_XRAYS", "CXR_AIRFLOW_DB", "CXR_API_SECRET", "CXR_BROKER_PASSWORD",
    "CXR_FERNET_KEY", "CXR_INBOX_FOLDER", "CXR_JWT_SECRET", "CXR_POSTGRES_PASSWORD", "CXR_S3_ACCESS_KEY",
    "CXR_S3_SECRET_KEY", "CXR_UI_PASSWORD", "CXR_UI_PORT",
}  # fmt: skip
Share = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseSettings):
    """All settings with their defaults: the published method, on a machine with a GPU."""

    model_config = SettingsConfigDict(env_prefix="CXR_", extra="forbid", frozen=True)

    # Store
    bucket: str = "cxr"  # S3 bucket that holds everything; it must exist
    prefix: str = ""  # key prefix inside the bucket, "" or ending in "/"
    s3_endpoint_url: str | None = None  # None: AWS; else the address of a compatible server
    aws_conn_id: str = ""  # Airflow connection with the credentials; "": boto3's own chain
    inbox: str = "inbox"  # folder, or s3://bucket/prefix, whose sub-folders and archives are the drops
    cache_dir: Path = Path(".local/cache")  # decoded images, listed and unpacked drops; may be deleted between runs

    # Labels
    classes: tuple[str, ...] = ("NORMAL", "COVID19", "PNEUMONIA")  # order of the model's outputs
    label_spellings: dict[str, str] = LABEL_SPELLINGS  # spelling in a drop -> label
    patient_salt: str = ""  # mixed into the hash that replaces a patient id; secret, never changed; "": no patients
    file_names: Literal["keep", "hash"] = "keep"  # "hash": of every file; for names that hold a patient undeclared

    # Reading images
    max_file_bytes: int = Field(64_000_000, gt=0)  # larger files are quarantined unread
    max_archive_bytes: int = Field(20_000_000_000, gt=0)  # an archive that unpacks to more is refused
    max_drop_files: int = Field(500_000, gt=0)  # files of an archive, rows of a labels.csv; more are refused
    max_pixels: int = Field(50_000_000, gt=0)  # larger images are quarantined undecoded
    shard_files: int = Field(5000, ge=1)  # files of a drop that are ingested as one piece, by one task of Airflow
    ingest_tasks: int = Field(1, ge=1)  # such pieces at the same time in a run of Airflow: one per worker machine
    duplicate_bits: int = Field(19, ge=0, le=64)  # upright: hashes at most so far apart are compared on pixels
    duplicate_correlation: float = Field(0.92, gt=0, le=1)  # at least so alike on pixels: the same image
    expectations: Path = Path(__file__).parents[1] / "expectations"  # folder of images.json, classes.json, dataset.json

    # Splits, shares of the groups whose drop does not say
    test_fraction: float = Field(0.2, gt=0, lt=1)
    validation_fraction: float = Field(0.15, gt=0, lt=1)  # of the groups that are not test

    # Shortcuts: what a probe that sees no lungs may know of the label
    shortcut_limit: float = Field(0.25, ge=0, le=1)  # warned of above; 0: no better than guessing, 1: always right

    # Training; defaults are the study's
    architectures: tuple[str, ...] = ("inception_v3", "resnet101_v2")
    weights: Literal["imagenet", "none"] = "imagenet"  # "none": every layer is trained from scratch
    warm_start: bool = False  # begin with the champion's weights where it is of the same architecture
    weights_dir: Path | None = None  # folder of <architecture>_notop.weights.h5, instead of Keras's download
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
    disguised: float = Field(0.6, ge=0, le=1)  # share of the views in another sharpness, contrast, encoding; study: 0
    seed: int = Field(0, ge=0, le=2**31 - 1)

    # Gate, on the test split
    recall_floors: dict[str, Share] = {"COVID19": 0.95, "PNEUMONIA": 0.90, "NORMAL": 0.70}
    f1_floors: dict[str, Share] = {"COVID19": 0.85, "PNEUMONIA": 0.85}
    macro_f1_floor: float = Field(0.85, ge=0, le=1)
    min_test_support: int = Field(30, ge=1)  # test images per class
    floors_on_lower_bound: tuple[str, ...] = ()  # e.g. "recall COVID19": whose interval's lower bound must meet it
    # How far below the champion's a figure may lie, at the lower end of the 95 % interval of the paired difference
    margins: dict[str, Annotated[float, Field(ge=0, lt=1)]] = {"recall COVID19": 0.05, "recall PNEUMONIA": 0.05}
    disguise_limit: float = Field(0.05, ge=0, le=1)  # macro F1 lost between the test images and a disguise, at most
    lungs_hidden_limit: float = Field(0.8, ge=0, le=1)  # balanced accuracy with the lungs blacked out, at most

    approval: bool = False  # whether a human must approve what passed the gate

    # Mail
    smtp_host: str = "localhost"
    smtp_port: int = Field(25, gt=0, lt=65536)
    smtp_starttls: bool = False
    smtp_user: str = ""  # "": no login
    smtp_password: str = ""
    smtp_conn_id: str = ""  # Airflow connection used instead of the five above
    smtp_timeout: float = Field(20.0, gt=0)  # seconds
    mail_from: str = "cxr@localhost"
    mail_allowed: tuple[str, ...] = ("radiology-team@localhost",)  # only these addresses ever get mail
    mail_to: tuple[str, ...] = ("radiology-team@localhost",)  # default recipients, from mail_allowed
    ui_url: str = ""  # address of the Airflow UI for links in mails; "": no links

    @field_validator("label_spellings")
    @classmethod
    def _beside_the_usual(cls, given: dict[str, str]) -> dict[str, str]:
        return LABEL_SPELLINGS | given

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        toml = TomlConfigSettingsSource(settings_cls, os.environ.get("CXR_CONFIG", "cxr.toml"))
        return init_settings, env_settings, toml


def load(**overrides: object) -> Settings:
    """Settings from the environment and the file, with `overrides` on top (None means not given).

    Raises:
        Refused: a value of the wrong type or out of range, an unknown name, or a file that is missing or no TOML.
    """
    config = os.environ.get("CXR_CONFIG")
    if config and not Path(config).is_file():
        raise Refused(f"CXR_CONFIG must name a readable TOML file. Received: {config!r}")
    known = _NO_SETTINGS | {f"CXR_{name.upper()}" for name in Settings.model_fields}
    if unknown := sorted(n for n in os.environ if n.upper().startswith("CXR_") and n.upper() not in known):
        near = get_close_matches(unknown[0].upper(), known, 1)
        raise Refused(
            f"Variables that begin with CXR_ must be settings, see cxr_ml/settings.py. Received: {', '.join(unknown)}"
            + (f". Was {near[0]} meant?" if near else "")
        )
    try:
        return Settings(**{k: v for k, v in overrides.items() if v is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc']))}: {e['msg']}. Received: {e['input']!r}" for e in error.errors()]
        raise Refused("These settings cannot be used:\n" + "\n".join(lines)) from None
    except (TOMLDecodeError, UnicodeDecodeError) as error:
        raise Refused(f"{config or 'cxr.toml'} must be a TOML file in UTF-8. Received: {error}") from None
    except SettingsError as error:
        raise Refused(f"Lists and tables in CXR_* variables must be JSON, as in '[\"light\"]'. {error}") from None
