"""The folder `.local/`: where it is, who holds it, and the secrets generated in it."""

import base64
import fcntl
import json
import os
import secrets
import shutil
import sys
from pathlib import Path

from cxr_ml.errors import Refused

REPOSITORY = Path(__file__).resolve().parents[1]


def folder() -> Path:
    """Returns the absolute path of the state folder: `.local/` of this checkout, or the folder named by CXR_LOCAL."""
    return Path(os.environ.get("CXR_LOCAL") or REPOSITORY / ".local").absolute()


def hold(state: Path) -> int:
    """Takes the lock of `state` (made with mode 0700 if missing) and returns its file descriptor.

    The lock lasts until every process that has the descriptor ended, so it also covers services still shutting down.

    Raises:
        Refused: another process holds it, or it has files of somebody else.
    """
    # `cxr-ml` on its own may have made the cache.
    if state.is_dir() and not (state / "lock").is_file() and {path.name for path in state.iterdir()} - {"cache"}:
        raise Refused(
            f"The state folder must be empty or one that `make run` made. Received: {state}, which holds other files. "
            "Set CXR_LOCAL to another folder, or move these files away."
        )
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(state / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 20).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise Refused(
            f"`make run` is up already in {state} (process {holder}), or is still ending. "
            "End it with Ctrl-C in its terminal, wait some seconds, and try again."
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def write_private_file(path: Path, text: str) -> None:
    """Writes `text` so that only its owner can ever read it, whole or not at all."""
    draft = path.with_name(path.name + ".draft")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    draft.replace(path)


def load_secrets(state: Path) -> dict[str, str]:
    """Returns the secrets, generated the first time: S3 keys, keys of Airflow, its UI password, the patient salt."""
    path = state / "secrets.json"
    if not path.exists():
        generated = {
            "s3_access_key": secrets.token_hex(10),
            "s3_secret_key": secrets.token_urlsafe(30),
            "jwt_secret": secrets.token_urlsafe(48),
            "api_secret": secrets.token_urlsafe(32),
            "fernet_key": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "ui_password": secrets.token_urlsafe(12),
            "patient_salt": secrets.token_urlsafe(32),
        }
        write_private_file(path, json.dumps(generated, indent=2) + "\n")
    return json.loads(path.read_text())


def clean(state: Path) -> bool:
    """Removes `state`. Returns False when there was nothing to remove.

    Raises:
        Refused: it is in use, or `make run` did not make it.
    """
    if not state.exists():
        return False
    descriptor = hold(state)
    try:
        shutil.rmtree(state)
    finally:
        os.close(descriptor)
    return True


if __name__ == "__main__":
    try:
        print(f"Removed {folder()}" if clean(folder()) else f"Nothing to remove: {folder()} does not exist.")
    except Refused as error:
        sys.exit(str(error))
