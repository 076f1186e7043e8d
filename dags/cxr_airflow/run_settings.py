"""Settings and store of a run: what the form changed, and credentials from Airflow's connections."""

from typing import TYPE_CHECKING, Any

from airflow.sdk import Connection

from cxr_airflow.form import read_overrides
from cxr_ml import settings as settings_module
from cxr_ml.errors import Refused
from cxr_ml.settings import Settings

if TYPE_CHECKING:
    from cxr_ml.store import ObjectStore


def load_settings(params: dict[str, Any] | None = None) -> Settings:
    """Returns the settings of a run, with the mail server of the Airflow connection that they name, if they name one.

    Args:
        params: the form of a retraining, whose fields override settings; None: the run has another form.

    Raises:
        Refused: a setting, a field of the form or the connection cannot be used.
    """
    sections: dict[str, dict[str, Any]] = {}
    for name, value in (read_overrides(params) if params is not None else {}).items():
        section, _, field = name.partition(".")
        sections.setdefault(section, {})[field] = value
    settings = settings_module.load(**sections)
    if not settings.mail.smtp_conn_id:
        return settings
    connection = Connection.get(settings.mail.smtp_conn_id)
    if connection.port == 465:
        raise Refused(
            f"The Airflow connection {settings.mail.smtp_conn_id!r} must name a port for STARTTLS, usually 587. "
            "Received: 465, which speaks TLS from the first byte."
        )
    return settings.replace(
        mail={
            "smtp_host": connection.host or "localhost",
            "smtp_port": connection.port or 25,
            "smtp_user": connection.login or "",
            "smtp_password": connection.password or "",
            "smtp_starttls": not connection.extra_dejson.get("disable_tls", False),
        }
    )


def open_store(settings: Settings) -> "ObjectStore":
    """Returns the store, with the credentials of the Airflow connection that the settings name, if they name one."""
    from cxr_ml.store import ObjectStore

    conn_id = settings.store.aws_conn_id
    if not conn_id:
        return ObjectStore(settings.store)
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    return ObjectStore(settings.store, S3Hook(aws_conn_id=conn_id))
