"""Refuses settings, suites and a drop that cannot work, before Airflow starts.

python -m local.preflight      checks the suites, which takes seconds; status 2 and a sentence where they are refused
"""

import sys
from pathlib import Path

from cxr_ml import settings as settings_module
from cxr_ml.errors import Refused
from cxr_ml.ingest import cache, labels
from cxr_ml.reporting import messages
from cxr_ml.settings import Settings
from cxr_ml.store import ObjectStore
from cxr_ml.training import backbones
from cxr_ml.validation.suite_check import check_suites


def check_settings(settings: Settings) -> None:
    """Makes sure that networks, their weights and the recipients of the report are such as a run can use.

    Raises:
        Refused: they are not.
    """
    backbones.check(settings.training, settings.weights_dir)
    messages.allowed(settings.mail.recipients, settings.mail)


def check_drop(store: ObjectStore, settings: Settings, drop: Path) -> None:
    """Makes sure that a folder or archive, wherever it lies, has files with known labels.

    Raises:
        Refused: it has none, or labels.csv or the archive cannot be used.
    """
    drop = drop.resolve()
    settings = settings.replace(inbox={"path": str(drop.parent)})
    try:
        labels.check_labels(store, settings, drop.name)
    finally:
        cache.evict(store, settings.inbox, settings.cache_dir, drop.name)


if __name__ == "__main__":
    try:
        loaded = settings_module.load()
        check_suites(loaded.validation, loaded.cache_dir)
    except Refused as error:
        print(error, file=sys.stderr)
        sys.exit(2)
