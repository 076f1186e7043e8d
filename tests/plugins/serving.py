"""Airflow's API server on a new database, in one process: to import Airflow takes each that does seconds.

Arguments are those of `airflow api-server`. Reads from standard input, as JSON, users that FAB is to know: by name
their role and their password.
"""

import gc
import json
import sys

gc.set_threshold(100_000)  # else a quarter of the time goes into looking through what imports make


def make_users(users: dict[str, tuple[str, str]]) -> None:
    """As `airflow users create` does."""
    from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder

    with get_application_builder() as builder:
        for name, (role, password) in users.items():
            found = builder.sm.find_role(role)
            assert builder.sm.add_user(name, name, name, f"{name}@hospital.example", found, password)


if __name__ == "__main__":
    from airflow.__main__ import main
    from airflow.utils.db import initdb

    users = json.load(sys.stdin)
    initdb()
    if users:
        make_users(users)
    sys.argv[:1] = ["airflow", "api-server"]
    main()
