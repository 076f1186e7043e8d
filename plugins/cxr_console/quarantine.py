"""The refused files as a wall of thumbnails, one of them with all that is known, and what a human rules on them."""

import re
from itertools import islice
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from fastapi import APIRouter, Form, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from cxr_console import pages, shelf
from cxr_console.access import User, ask_form, may_trigger
from cxr_ml.data import reasons, rule, thumbnails
from cxr_ml.errors import Refused
from cxr_ml.records import Batch

router = APIRouter()
PAGE = 60  # thumbnails on a page
_MOST = 500  # files ruled on at once
_ROW = re.compile(r"([^/]{1,300})/(\d{1,7})")
_BACK = re.compile(r"quarantine(/[^/?#\s]{1,300}/\d{1,7}|\?[A-Za-z0-9_.~%&=+:-]*)?")  # a page of this module
_SHA = re.compile(r"[0-9a-f]{64}")


@router.get("/quarantine")
def wall(
    request: Request,
    user: User,
    reason: Annotated[str, Query(max_length=200)] = "",
    label: Annotated[str, Query(max_length=200)] = "",
    drop: Annotated[str, Query(max_length=300)] = "",
    page: Annotated[int, Query(ge=1, le=100_000)] = 1,
) -> HTMLResponse:
    """A page of the wall, newest drop first."""
    everything = shelf.batches()
    ruled = shelf.rulings()
    rows = _rows([b for b, _ in everything if not drop or b.batch == drop], reason, label)
    shown = list(islice(rows, (page - 1) * PAGE, page * PAGE + 1))
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
        classes=shelf.settings().classes,
        chosen={"reason": reason, "label": label, "drop": drop},
        refused=sum(n for b, _ in everything for v, c in b.counts.items() if v != "accepted" for n in c.values()),
    )


def _rows(batches: list[Batch], reason: str, label: str) -> Any:  # noqa: ANN401 - a generator
    """(batch, number, row) of the refused files; a table is read only if its batch can have what is asked for."""
    for batch in batches:
        labels = {name for verdict, c in batch.counts.items() if verdict != "accepted" for name in c}
        if not labels or (reason and reason not in batch.reasons) or (label and label not in labels):
            continue
        table = shelf.refused(batch.batch)
        hit = np.ones(len(table), bool)
        if reason:
            hit &= np.array([reason in set(codes) for codes in table["reasons"]], bool)
        if label:
            hit &= (table["label"] == label).to_numpy(bool)
        for number in np.flatnonzero(hit):
            yield batch.batch, int(number), table.iloc[number].to_dict()


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
        made = rule.rule_all(shelf.settings(), names, action, user.get_name(), why, label, rejected_too)
    except Refused as error:
        # What the command line calls an option is a box to tick here.
        said = str(error).replace("--from-rejected-class", "“also from a rejected class”").replace(" (--why)", "")
        raise HTTPException(400, said.replace(" (--by)", "")) from None
    done = {"release": "let in", "relabel": f"let in as {label}", "withdraw": "taken out"}[action]
    images = "1 image was" if len(made) == 1 else f"{len(made)} images were"
    said = f"{images} {done}; the next dataset honours it."
    return pages.back_to(request, back if _BACK.fullmatch(back) else "quarantine", said)


def _row(name: str) -> tuple[str, int, dict[str, Any]]:
    """The refused file that `batch/number` names. HTTPException 404 where there is none."""
    match = _ROW.fullmatch(name)
    batch = shelf.batch(match[1]).batch if match else ""
    table = shelf.refused(batch) if batch else pd.DataFrame()
    if not match or int(match[2]) >= len(table):
        raise HTTPException(404, f"There is no refused file of this name. Received: {name[:300]!r}")
    return batch, int(match[2]), table.iloc[int(match[2])].to_dict()


@router.get("/quarantine/{batch}/{number}")
def file(request: Request, user: User, batch: str, number: int) -> HTMLResponse:
    """One refused file: why, beside which limits, what shows the same picture, who ruled on it."""
    s = shelf.settings()
    _, number, row = _row(f"{batch}/{number}")
    record = shelf.batch(batch)
    series = shelf.refused(batch).iloc[number]
    why = record.rejected_classes.get(row["label"], "")
    return pages.render(
        request,
        user,
        "file.html",
        row["file"].rpartition("/")[2] or "A refused file",
        batch=record,
        number=number,
        row=row,
        reasons={code: reasons.explain(code, series, why, s) for code in row["reasons"]},
        limits=[x for x in reasons.limits(series, s) if x.limit] if row["sha256"] else [],
        ruling=shelf.rulings().get(row["sha256"]) if row["sha256"] else None,
        classes=s.classes,
    )


@router.get("/thumbnails/{name}.jpg")
def thumbnail(name: str, user: User) -> Response:
    """The small picture of a refused image, or of the one that it repeats."""
    if not _SHA.fullmatch(name):
        raise HTTPException(404, "A SHA-256 of 64 digits was expected.")
    content = shelf.object_bytes(thumbnails.key(name))
    return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=86400, immutable"})
