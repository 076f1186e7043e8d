"""The refused files as a wall of thumbnails, one of them with all that is known, and what a human rules on them."""

import re
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fastapi import APIRouter, Form, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from cxr_console import pages, store_cache
from cxr_console.access import User, ask_form, may_trigger
from cxr_ml import layout
from cxr_ml.dataset import versions
from cxr_ml.errors import Refused
from cxr_ml.records import Batch
from cxr_ml.validation import add_ruling, limits, reasons
from cxr_ml.validation.rulings import RulingRefused, RulingsRefused

router = APIRouter()
PAGE = 60  # thumbnails on a page
_MOST = 500  # files ruled on at once
_AT_ONCE = 8  # tables that are read at once
_ON_THE_WALL = ["file", "sha256", "label", "label_raw", "reasons"]
_ROW = re.compile(r"([^/]{1,300})/(\d{1,7})")
_BACK = re.compile(r"quarantine(/[^/?#\s]{1,300}/\d{1,7}|\?[A-Za-z0-9_.~%&=+:-]*)?")  # a page of this module
_SHA = re.compile(r"[0-9a-f]{64}")


@router.get("/quarantine")
def index(
    request: Request,
    user: User,
    reason: Annotated[str, Query(max_length=200)] = "",
    label: Annotated[str, Query(max_length=200)] = "",
    drop: Annotated[str, Query(max_length=300)] = "",
    page: Annotated[int, Query(ge=1, le=100_000)] = 1,
) -> HTMLResponse:
    """A page of the wall, newest drop first."""
    everything = store_cache.batches()
    ruled = store_cache.in_force()
    asked = [b for b, _ in everything if not drop or b.batch == drop]
    shown = _rows(asked, reason, label, (page - 1) * PAGE, PAGE + 1)
    return pages.render(
        request,
        user,
        "quarantine.html",
        "Quarantine",
        rows=[(*row, ruled.get(row[2]["sha256"])) for row in shown[:PAGE]],
        more=len(shown) > PAGE,
        page=page,
        reasons=sorted({code for b, _ in everything for code in b.reasons}),
        labels=sorted({name for b, _ in everything for counts in b.counts.values() for name in counts} - {"?"}),
        drops=[(b.batch, b.drop, when) for b, when in everything],
        classes=store_cache.settings().classes,
        chosen={"reason": reason, "label": label, "drop": drop},
        refused=sum(n for b, _ in everything for v, c in b.counts.items() if v != "accepted" for n in c.values()),
    )


def _rows(
    batches: list[Batch], reason: str, label: str, skip: int, count: int
) -> list[tuple[str, int, dict[str, Any]]]:
    """(batch, number, row) of the refused files that fit, `count` of them after the first `skip`.

    A table is read only if its batch has what is asked for, and, unless it is a reason, only if some of it is shown.
    """
    waiting = [(batch, most) for batch in batches if (most := _most(batch, reason, label))]
    found: list[tuple[str, int, dict[str, Any]]] = []
    while waiting and len(found) < count:
        if not reason and waiting[0][1] <= skip:
            skip -= waiting.pop(0)[1]
            continue
        group, room = [], 0
        while waiting and room < skip + count - len(found) and len(group) < _AT_ONCE:
            group.append(waiting[0][0].batch)
            room += waiting.pop(0)[1]
        for name, table in zip(group, store_cache.refused_of(group), strict=True):
            hits = _hits(table, reason, label)
            shown = hits[skip : skip + count - len(found)]
            skip = max(0, skip - len(hits))
            rows = table.select(_ON_THE_WALL).take(shown).to_pylist()
            found += [(name, int(number), row) for number, row in zip(shown, rows, strict=True)]
    return found


def _most(batch: Batch, reason: str, label: str) -> int:
    """How many refused files of a batch fit; with a reason, how many at most."""
    refused = [counts for verdict, counts in batch.counts.items() if verdict != "accepted"]
    files = sum(counts.get(label, 0) if label else sum(counts.values()) for counts in refused)
    return min(files, batch.reasons.get(reason, 0)) if reason else files


def _hits(table: pa.Table, reason: str, label: str) -> np.ndarray:
    """Numbers of the rows that fit, in order."""
    fits = np.ones(len(table), bool)
    if label:
        fits = pc.equal(table["label"], label).to_numpy()
    if reason:
        codes = table["reasons"].combine_chunks()
        bears = np.zeros(len(table), bool)
        bears[pc.list_parent_indices(codes).to_numpy()[pc.equal(pc.list_flatten(codes), reason).to_numpy(False)]] = True
        fits = fits & bears
    return np.flatnonzero(fits)


@router.post("/quarantine", dependencies=[may_trigger, ask_form])
def judge(
    request: Request,
    user: User,
    action: Annotated[Literal["release", "relabel", "withdraw"], Form()],
    why: Annotated[str, Form(max_length=2000)],
    files: Annotated[list[str], Form(max_length=_MOST)] = [],  # noqa: B006 - FastAPI copies it
    label: Annotated[str, Form(max_length=100)] = "",
    rejected_too: Annotated[bool, Form()] = False,
    sure: Annotated[bool, Form()] = False,
    back: Annotated[str, Form(max_length=400)] = "quarantine",
) -> RedirectResponse:
    """Rules on one file or many, for one reason: on all, or, where one of them cannot be, on none."""
    if not files or not sure:
        raise HTTPException(400, "Choose at least one file, and tick that you are sure. Nothing was changed.")
    names = [f"{batch}/{row['file']}" for batch, _, row in map(_row, files)]
    try:
        settings = store_cache.settings()
        withheld, known = versions.load_withheld(store_cache.store()), store_cache.rulings()
        ruling_request = add_ruling.Request(action, user.get_name(), why, label, rejected_too)
        made = add_ruling.rule_on_images(
            store_cache.store(),
            settings.inbox,
            settings.classes,
            withheld,
            names,
            ruling_request,
            store_cache.named,
            known,
        )
    except Refused as error:
        raise HTTPException(400, _explain_refusal(error)) from None
    store_cache.add_rulings(made)
    done = {"release": "let in", "relabel": f"let in as {label}", "withdraw": "taken out"}[action]
    images = "1 image was" if len(made) == 1 else f"{len(made)} images were"
    said = f"{images} {done}; the next dataset honours it."
    return pages.back_to(request, back if _BACK.fullmatch(back) else "quarantine", said)


def _explain_refusal(error: Refused) -> str:
    """The refusal, with the box to tick where it is one of a rejected class."""
    refusals = error.refusals if isinstance(error, RulingsRefused) else [error]
    if any(isinstance(refusal, RulingRefused) and refusal.code == "rejected_class" for refusal in refusals):
        return f"{error}\nIf an image is meant all the same, tick “also from a rejected class”."
    return str(error)


def _row(name: str) -> tuple[str, int, dict[str, Any]]:
    """The refused file that `batch/number` names. HTTPException 404 where there is none."""
    match = _ROW.fullmatch(name)
    batch = store_cache.batch(match[1]).batch if match else ""
    if not match or int(match[2]) >= len(table := store_cache.refused(batch)):
        raise HTTPException(404, f"There is no refused file of this name. Received: {name[:300]!r}")
    return batch, int(match[2]), table.slice(int(match[2]), 1).to_pylist()[0]


@router.get("/quarantine/{batch}/{number}")
def file(request: Request, user: User, batch: str, number: int) -> HTMLResponse:
    """One refused file: why, beside which limits, what shows the same picture, who ruled on it."""
    s = store_cache.settings()
    _, number, row = _row(f"{batch}/{number}")
    record = store_cache.batch(batch)
    why = record.rejected_classes.get(row["label"], "")
    return pages.render(
        request,
        user,
        "file.html",
        row["file"].rpartition("/")[2] or "A refused file",
        batch=record,
        number=number,
        row=row,
        reasons={code: reasons.explain(code, row, why, s.validation) for code in row["reasons"]},
        limits=[x for x in limits.compare_with_limits(row, s.validation) if x.limit] if row["sha256"] else [],
        ruling=store_cache.in_force().get(row["sha256"]) if row["sha256"] else None,
        classes=s.classes,
    )


@router.get("/thumbnails/{name}.jpg")
def thumbnail(name: str, user: User) -> Response:
    """The small picture of a refused image, or of the one that it repeats."""
    if not _SHA.fullmatch(name):
        raise HTTPException(404, "A SHA-256 of 64 digits was expected.")
    content = store_cache.object_bytes(layout.thumbnail(name))
    return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=86400, immutable"})
