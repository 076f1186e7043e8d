"""Who may read, who may change, and whether a form that changes something really came from these pages."""

from typing import Annotated
from urllib.parse import urlsplit

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.auth.tokens import get_signing_key
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from airflow.configuration import conf
from airflow.models.dag import DagModel
from fastapi import Depends, Form, HTTPException, Request
from itsdangerous import BadSignature, URLSafeTimedSerializer

RETRAINING, ROLLBACK = "cxr_retraining", "cxr_rollback"
_FORM_SECONDS = 12 * 3600  # that a page may be open before its form is sent

User = GetUserDep
may_read = Depends(requires_access_dag("GET", None, RETRAINING))
may_trigger = Depends(requires_access_dag("POST", DagAccessEntity.RUN, RETRAINING))
may_roll_back = Depends(requires_access_dag("POST", DagAccessEntity.RUN, ROLLBACK))
may_answer = Depends(requires_access_dag("PUT", DagAccessEntity.HITL_DETAIL, RETRAINING))


def _signer(purpose: str) -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(get_signing_key("api", "secret_key"), salt=f"cxr-console-{purpose}")


def can_change(user: BaseUser) -> bool:
    """Whether the user may trigger a retraining, which is what changing anything here takes."""
    return get_auth_manager().is_authorized_dag(
        method="POST",
        access_entity=DagAccessEntity.RUN,
        details=DagDetails(id=RETRAINING, team_name=DagModel.get_team_name(RETRAINING)),
        user=user,
    )


def form_token(user: BaseUser) -> str:
    """What a form must bring back to be taken for one of this user's."""
    return _signer("form").dumps(str(user.get_id()))


def own_form(request: Request, user: User, token: Annotated[str, Form()] = "") -> None:
    """Refuses a form that another site made the browser send.

    Raises:
        HTTPException: 403; the form's token is none of this user's, is too old, or the form comes from elsewhere.
    """
    origin = request.headers.get("origin")
    elsewhere = request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
    try:
        known = _signer("form").loads(token, max_age=_FORM_SECONDS)
    except BadSignature:
        known = None
    # A proxy may ask under another name than the browser does.
    here = {request.url.netloc, urlsplit(conf.get("api", "base_url", fallback="")).netloc}
    if known != str(user.get_id()) or elsewhere or (origin and urlsplit(origin).netloc not in here):
        raise HTTPException(403, "This form was not sent from this page, or is too old. Go back, reload and try again.")


ask_form = Depends(own_form)


def sealed(text: str) -> str:
    """A sentence for the next page, such that nobody else can put words into it."""
    return _signer("said").dumps(text)


def unsealed(token: str) -> str:
    """The sentence, "" where it is not one of ours or older than a minute."""
    try:
        return _signer("said").loads(token, max_age=60)
    except BadSignature:
        return ""
