"""What the store knows of the mails about a run: who has one, and who still waits for one.

A mark says for each address that the server accepted the mail. It is set after the mail was sent, not before: a process
that dies in between sends the mail twice, with the same Message-ID, by which most mail programs show it once. The other
order would lose the mail, and nobody would hear of a promotion.
"""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime

from cxr_ml import layout
from cxr_ml.records import Mailed, Unsent
from cxr_ml.store import ObjectStore


def _mark_key(run: str, kind: str, address: str) -> str:
    digest = hashlib.sha256(address.casefold().encode()).hexdigest()[:16]
    return layout.sent_mail(run, kind, digest)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def is_sent(store: ObjectStore, run: str, kind: str, address: str) -> bool:
    """Returns whether the mail server accepted this mail for the address."""
    return store.exists(_mark_key(run, kind, address))


def mark_sent(store: ObjectStore, run: str, kind: str, address: str) -> None:
    """Records that the mail server accepted this mail for the address."""
    mark = Mailed(kind=kind, to=address, at=_now())
    store.put_if_absent(_mark_key(run, kind, address), mark.to_bytes(), "application/json")


def mark_unsent(store: ObjectStore, run: str, kind: str, waiting: Sequence[str], why: str) -> None:
    """Records who did not get this mail at the last try, and why."""
    missed = Unsent(kind=kind, to=tuple(waiting), why=why, at=_now())
    store.put_uncommitted(layout.unsent_mail(run, kind), missed.to_bytes(), "application/json")


def was_unsent(store: ObjectStore, run: str, kind: str) -> bool:
    """Returns whether an earlier try to send this mail failed."""
    return store.exists(layout.unsent_mail(run, kind))


def find_unsent(store: ObjectStore, run: str) -> list[Unsent]:
    """Returns the mails about a run that somebody still waits for."""
    missed = (store.load(key, Unsent) for key in store.keys(layout.unsent_mails(run)))
    return [mail for mail in missed if not all(is_sent(store, run, mail.kind, a) for a in mail.to)]
