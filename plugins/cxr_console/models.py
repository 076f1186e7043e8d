"""All models in a table, one with its evidence, two side by side."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, Response
from markdown_it import MarkdownIt
from markupsafe import Markup

from cxr_console import pages, store_cache
from cxr_console.access import User
from cxr_ml import layout
from cxr_ml.errors import Refused
from cxr_ml.registry import promotion, queries
from cxr_ml.reporting import narrative

router = APIRouter()
OUTCOMES = ("promoted", "refused", "not_chosen", "undecided")
Sort = Literal["at", "model", "architecture", "dataset", "outcome", "macro_f1", "COVID19", "PNEUMONIA", "NORMAL"]
# No HTML, no links and no images of a text from the store: only headings, lists, tables, emphasis and code.
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["link", "image", "autolink"])


@router.get("/models")
def models(
    request: Request,
    user: User,
    sort: Sort = "at",
    order: Literal["up", "down"] = "down",
    outcome: Literal["", "promoted", "refused", "not_chosen", "undecided"] = "",
    architecture: Annotated[str, Query(max_length=100)] = "",
    name: Annotated[str, Query(max_length=200)] = "",
) -> HTMLResponse:
    """The table, sorted and filtered."""
    everything = store_cache.models(store_cache.history())
    rows = [
        row
        for row in everything
        if outcome in ("", row["outcome"])
        and architecture in ("", row["architecture"])
        and name.casefold() in row["model"].casefold()
    ]
    known = [row for row in rows if _value(row, sort) is not None]
    known.sort(key=lambda row: _value(row, sort), reverse=order == "down")
    return pages.render(
        request,
        user,
        "models.html",
        "Models",
        rows=[*known, *(row for row in rows if _value(row, sort) is None)],
        total=len(everything),
        classes=list(store_cache.settings().gate.recall_floors),
        architectures=sorted({row["architecture"] for row in everything}),
        outcomes=OUTCOMES,
        sort=sort,
        order=order,
        chosen={"outcome": outcome, "architecture": architecture, "name": name},
    )


def _value(row: dict[str, Any], sort: str) -> Any:  # noqa: ANN401 - whatever the column holds
    value = row[sort] if sort in row else (row["recalls"] or {}).get(sort)
    return None if value is None or value != value else value  # NaN is no figure to sort by


@router.get("/models/compare")
def compare(
    request: Request, user: User, pair: Annotated[tuple[str, ...], Query(alias="model", max_length=2)] = ()
) -> HTMLResponse:  # fmt: skip
    """Two models on the same test images."""
    if len(pair) != 2 or pair[0] == pair[1]:
        raise HTTPException(400, f"Choose two different models to compare. Received: {len(set(pair))}.")
    for name in pair:
        store_cache.model(name)
    try:
        found = store_cache.compare(*pair)
    except Refused as error:
        raise HTTPException(400, str(error)) from None
    return pages.render(request, user, "compare.html", "Two models", found=found)


@router.get("/models/{name}")
def model(request: Request, user: User, name: str) -> HTMLResponse:
    """One model: what it is made of, how the gate judged it, its figures, its card."""
    record, entries = store_cache.model(name), store_cache.history()
    s, last = store_cache.settings(), queries.judged(entries, name)
    found = store_cache.evaluation(name, entries)
    judged = [e for e in entries if e.decision and name in e.decision.candidates]
    card = store_cache.card(name, last.run if last and len(judged) > 1 else None)
    return pages.render(
        request,
        user,
        "model.html",
        name,
        model=record,
        fate=queries.fate(entries, promotion.champion(store_cache.store()), name),
        entries=[e for e in reversed(entries) if e.model == name],
        last=last,
        found=found,
        figures=queries.all_figures(found) if found else {},
        disguises=narrative.disguises(found) if found else [],
        lungs=narrative.lungs(found, s.gate.lungs_hidden_limit) if found else [],
        card=_html(card) if card else None,
        others=sorted(store_cache.model_names() - {name}),
    )


def _html(markdown: bytes) -> Markup:
    tokens = _MARKDOWN.parse(markdown.decode("utf-8", "replace"))
    for token in tokens:
        if token.attrs.pop("style", None):  # of a column that is aligned; pages have no styles of their own
            token.attrs["class"] = "n"
    return Markup(_MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {}))  # noqa: S704 - `_MARKDOWN` lets no HTML through


@router.get("/models/{name}/history.csv")
def history(name: str, user: User) -> Response:
    """The epochs, as a table to download."""
    store_cache.model(name)
    content = store_cache.object_bytes(layout.training_curves(name))
    headers = {"Content-Disposition": "attachment; filename=history.csv"}
    return Response(content, media_type="text/csv; charset=utf-8", headers=headers)
