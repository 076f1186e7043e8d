"""Writes docker/.env from docker/.env.example, with a new secret after each name that has no value there.

Needs nothing but Python. Never replaces an existing docker/.env: the database and the store were made with its secrets.
"""

import base64
import os
import secrets
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def secret(name: str) -> str:
    """A new secret that can stand in a URL and in a shell word."""
    if name == "CXR_FERNET_KEY":  # its form is prescribed
        return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    return secrets.token_hex(32)


def filled(example: str) -> str:
    """`example` with a secret after each line that ends in `=`."""
    lines = example.splitlines()
    is_name = [line.endswith("=") and not line.startswith("#") for line in lines]
    return "".join(f"{line}{secret(line[:-1]) if empty else ''}\n" for line, empty in zip(lines, is_name, strict=True))


def main(folder: Path = FOLDER) -> int:
    """Writes `.env` in `folder`, for its owner alone, and makes the inbox. Returns the exit status."""
    path = folder / ".env"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        print(f"{path} is there already and stays as it is.", file=sys.stderr)
        return 2
    with os.fdopen(descriptor, "w") as file:
        file.write(filled((folder / ".env.example").read_text()))
    (folder / "inbox").mkdir(exist_ok=True)
    print(f"Wrote {path}. The password of the user `admin` is CXR_UI_PASSWORD in it.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
