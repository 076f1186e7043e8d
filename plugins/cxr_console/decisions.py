"""What a human decides: which earlier champion comes back, and whether a candidate that passed is promoted."""

from typing import Annotated, Literal

from fastapi import APIRouter, Form, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse

from cxr_console import pages, scheduler, store_cache
from cxr_console.access import User, ask_form, may_answer, may_roll_back, may_trigger
from cxr_ml import layout
from cxr_ml.records import Decision
from cxr_ml.registry import promotion

router = APIRouter()
Why = Annotated[str, Form(max_length=2000)]
Sure = Annotated[bool, Form()]


def _meant(why: str, sure: bool) -> str:
    if not why.strip() or not sure:
        raise HTTPException(400, "Give a reason, and tick that you are sure. Nothing was changed.")
    return why.strip()


@router.get("/rollback")
def rollback(request: Request, user: User) -> HTMLResponse:
    """The earlier champions, and the form that brings one back."""
    entries = store_cache.history()
    champion = promotion.champion(store_cache.store())
    rows = {row["model"]: row for row in store_cache.models(entries) if row["versions"]}
    earlier = [row for name, row in rows.items() if champion and name != champion.model]
    return pages.render(
        request,
        user,
        "rollback.html",
        "Rollback",
        champion=champion,
        now=rows.get(champion.model) if champion else None,
        earlier=earlier,
        classes=list(store_cache.settings().gate.recall_floors),
    )


@router.post("/rollback", dependencies=[may_trigger, may_roll_back, ask_form])
def roll_back(
    request: Request, user: User, to: Annotated[str, Form(max_length=255)], why: Why, sure: Sure = False
) -> RedirectResponse:
    """Triggers the rollback."""
    reason = _meant(why, sure)
    champion = promotion.champion(store_cache.store())
    known = {e.model for e in store_cache.history() if e.version is not None} - {champion.model if champion else None}
    if to not in known:
        raise HTTPException(400, f"A rollback goes to an earlier champion. Received: {to[:200]!r}")
    run = scheduler.roll_back(to, reason, user)
    return pages.back_to(request, f"runs/{promotion.slug(run)}", f"The rollback to {to} has begun.")


@router.get("/approvals/{name}")
def approval(request: Request, user: User, name: str) -> HTMLResponse:
    """The decision of a waiting run, and the form that answers it."""
    run = _waiting(name)
    found = store_cache.store().load_or_none(layout.decision(run.name), Decision)
    if found is None:
        raise HTTPException(404, "The run waits, but the store has no decision of it.")
    return pages.render(
        request, user, "approval.html", "Promote this model?", run=run, decision=found[0],
    )  # fmt: skip


@router.post("/approvals/{name}", dependencies=[may_trigger, may_answer, ask_form])
def answer(
    request: Request, user: User, name: str, choice: Annotated[Literal["approve", "reject"], Form()], why: Why,
    sure: Sure = False,
) -> RedirectResponse:  # fmt: skip
    """Answers for the human, with the reason."""
    reason = _meant(why, sure)
    run = _waiting(name)
    scheduler.answer(run.id, choice == "approve", reason, user)
    said = "You approved the promotion." if choice == "approve" else "You rejected the promotion; the champion stays."
    return pages.back_to(request, f"runs/{run.name}", said)


def _waiting(name: str) -> scheduler.AirflowRun:
    run = next((run for run in scheduler.waiting() if run.name == name), None)
    if run is None:
        raise HTTPException(404, f"No run of this name waits for an answer. Received: {name[:200]!r}")
    return run
