"""Settings with other values, by the last part of their names: no two sections share one."""

from cxr_ml.settings import Settings, names

_SECTION = {name.rpartition(".")[2]: name.rpartition(".")[0] for name in names()}


def changed(settings: Settings, **values: object) -> Settings:
    """`settings` with other values, e.g. `changed(settings, seed=3, macro_f1_floor=0.9)`."""
    sections: dict[str, dict[str, object]] = {}
    for name, value in values.items():
        sections.setdefault(_SECTION[name], {})[name] = value
    return settings.replace(**sections.pop("", {}), **sections)
