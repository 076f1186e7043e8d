"""What has to be there before the services of compose.yaml start; run again at each `docker compose up`."""

import json
import os
import subprocess
from pathlib import Path

from botocore.exceptions import ClientError

from cxr_ml import settings as settings_module
from cxr_ml.store import ObjectStore

POOL = ["gpu", "1", "One training at a time"]


def make_bucket(store: ObjectStore) -> None:
    """Makes the bucket unless it is there.

    Raises:
        Refused: somebody else has a bucket of that name.
    """
    try:
        store.client.create_bucket(Bucket=store.bucket)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
            raise
    store.check()


def write_passwords(path: Path, users: str, password: str) -> None:
    """The file of Airflow's simple auth manager: `password` for each of `users`, which is name:role,name:role."""
    draft = path.with_name(path.name + ".draft")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump({user.split(":")[0]: password for user in users.split(",")}, file)
    draft.replace(path)


def main() -> None:
    """The database, the pool, the bucket and the password, each as often as it is called."""
    subprocess.run(["airflow", "db", "migrate"], check=True)  # noqa: S607 - of the image
    subprocess.run(["airflow", "pools", "set", *POOL], check=True)  # noqa: S607
    make_bucket(ObjectStore(settings_module.load().store))
    write_passwords(
        Path(os.environ["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"]),
        os.environ["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS"],
        os.environ["UI_PASSWORD"],
    )


if __name__ == "__main__":
    main()
