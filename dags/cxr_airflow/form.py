"""The trigger form. `FIELDS` is its one table: a new field is one row, and everything else derives from it."""

from collections.abc import Iterator
from typing import Any, NamedTuple, get_args

from airflow.sdk import Param

from cxr_ml import settings as settings_module
from cxr_ml.errors import Refused
from cxr_ml.settings import Architecture, Settings


class Field(NamedTuple):
    """A setting that the form shows. Type, default and limits are those of the setting."""

    setting: str  # its name; the last part of it is the field's, with the class behind it where there is one per class
    group: str  # under which heading
    description: str
    title: str = ""  # "": the name of the field in words; {} stands for the class


FIELDS = (
    Field("training.architectures", "Training", ""),
    Field("training.image_size", "Training", "Pixels, square"),
    Field("training.head_epochs", "Training", "With the backbone frozen, at most"),
    Field("training.fine_tune_epochs", "Training", "With everything trained"),
    Field("training.batch_size", "Training", "Images per step"),
    Field("training.head_learning_rate", "Training", "Frozen stage"),
    Field("training.fine_tune_learning_rate", "Training", "Fine-tuning"),
    Field("training.patience", "Training", "Epochs without a better loss, while the rate stays"),
    Field("training.seed", "Training", "Same data and seed, same model"),
    Field(
        "training.warm_start",
        "Training",
        "Begin with the champion's weights instead of ImageNet's, where it is of the same architecture",
    ),
    Field("gate.recall_floors", "Gate", "0 to 1", "Recall of {} at least"),
    Field("gate.f1_floors", "Gate", "0 to 1", "F1 of {} at least"),
    Field("gate.macro_f1_floor", "Gate", "0 to 1", "Macro F1 at least"),
    Field(
        "gate.floors_on_lower_bound",
        "Gate",
        "Of these, the lower end of the 95 % interval must meet the floor",
        "Floors on the lower bound",
    ),
    Field(
        "gate.approval",
        "Gate",
        "The run waits up to three days under Required Actions; silence means no.",
        "Ask a human before promotion",
    ),
)


def make_form(settings: Settings | None = None) -> dict[str, Param]:
    """Returns the form's fields.

    Args:
        settings: where the defaults come from, so that a scheduled run uses them; None: they are loaded.
    """
    settings = settings or settings_module.load()
    form = {
        "drop": Param(
            None,
            type=["null", "string"],
            maxLength=255,
            title="Drop",
            description="Name of one drop in the inbox. Empty: all new ones.",
        ),
        "train_anyway": Param(False, type="boolean", title="Train even if nothing is new"),
    }
    for field in FIELDS:
        form |= _make_params(field, settings)
    form["recipients"] = Param(
        list(settings.mail.recipients),
        **_choices(settings.mail.allowed),
        section="Report",
        title="E-mail recipients",
        description="From mail.allowed in the settings.",
    )
    return form


def read_overrides(params: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings that the form of a run changed, by their whole names, e.g. {"training.seed": 7}.

    Args:
        params: the values of the form.

    Raises:
        Refused: `params` has a field that the form does not have; Airflow itself lets it through.
    """
    settings = settings_module.load()
    form = make_form(settings)
    if unknown := set(params) - set(form):
        raise Refused(f"The form has no field {', '.join(map(repr, sorted(unknown)))}. It has: {', '.join(form)}")
    changed = {}
    for field in FIELDS:
        default = _get(settings, field.setting)
        if isinstance(default, dict):
            value: Any = {label: params[name] for label, name in _floor_fields(field, default)}
        else:
            value = params[_name(field)]
        value = tuple(value) if isinstance(default, tuple) else value
        if value != default:
            changed[field.setting] = value
    return changed


def _name(field: Field) -> str:
    return field.setting.rpartition(".")[2]


def _get(settings: Settings, name: str) -> Any:  # noqa: ANN401 - of as many types as there are settings
    section, _, field = name.partition(".")
    return getattr(getattr(settings, section), field)


def _floor_fields(field: Field, floors: dict[str, float]) -> Iterator[tuple[str, str]]:
    """(class, name of the field) of a table of floors: recall_floors has the fields recall_floor_COVID19 and so on."""
    return ((label, f"{_name(field).removesuffix('s')}_{label}") for label in floors)


def _make_params(field: Field, settings: Settings) -> dict[str, Param]:
    default = _get(settings, field.setting)
    common = {"section": field.group} | ({"description": field.description} if field.description else {})
    title = field.title or _name(field).replace("_", " ").capitalize()
    if isinstance(default, dict):
        return {
            name: Param(default[label], type="number", minimum=0, maximum=1, title=title.format(label), **common)
            for label, name in _floor_fields(field, default)
        }
    if isinstance(default, tuple):
        is_training = field.setting == "training.architectures"
        choices = get_args(Architecture) if is_training else _floor_names(settings)
        schema = _choices(choices) | ({"minItems": 1} if is_training else {})
        return {_name(field): Param(list(default), title=title, **schema, **common)}
    return {_name(field): Param(default, title=title, **_limits(field.setting, default), **common)}


def _choices(values: tuple[str, ...] | list[str]) -> dict[str, Any]:
    return {"type": "array", "items": {"enum": list(values)}, "examples": list(values), "uniqueItems": True}


def _floor_names(settings: Settings) -> list[str]:
    gate = settings.gate
    return [*(f"recall {c}" for c in gate.recall_floors), *(f"F1 {c}" for c in gate.f1_floors), "macro F1"]


def _limits(setting: str, default: bool | float) -> dict[str, Any]:
    """JSON schema of a number or a switch: its type, and the limits that the setting has."""
    if isinstance(default, bool):
        return {"type": "boolean"}
    section, _, name = setting.partition(".")
    words = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
    limits = {
        schema: getattr(limit, word)
        for limit in type(getattr(Settings(), section)).model_fields[name].metadata
        for word, schema in words.items()
        if hasattr(limit, word)
    }
    return {"type": "integer" if isinstance(default, int) else "number"} | limits
