"""Decisions about stored models, each with the evaluation that it was made on in the store."""

import report_samples as samples

from cxr_ml.evaluation import stored_evaluations
from cxr_ml.records import Check, Decision, Model
from cxr_ml.store import ObjectStore

NO_IMAGES = ((0, 0, 0),) * 3  # nothing to measure, so that the evaluation is made at once
PASSED = samples.check("macro F1", 0.95, 0.85, reason="macro F1 is 0.950.")
FAILED = samples.check("recall COVID19", 0.5, 0.95, reason="recall COVID19 is 0.500.")


def decision(
    settings,
    run: str,
    model: str,
    champion: str | None = None,
    checks: tuple[Check, ...] = (PASSED,),
    promote: bool = True,
) -> Decision:
    """A decision about a model whose model.json is stored, and which met that champion."""
    record, digest = ObjectStore(settings.store).load_hashed(f"models/{model}/model.json", Model)
    facts = {"model": model, "artefact_sha256": record.artefact_sha256, "files": {"model.json": digest}}
    evaluation = samples.evaluation(test=NO_IMAGES, validation=NO_IMAGES).model_copy(
        update=facts | {"beside": champion}
    )
    stored_evaluations.save(ObjectStore(settings.store), evaluation)
    _, judged = stored_evaluations.load_hashed(ObjectStore(settings.store), evaluation.dataset, model, champion)
    return Decision(
        run=run, model=model, dataset=evaluation.dataset, champion=champion, candidates=(model,), promote=promote,
        checks=checks, reason="Because.", evaluation_sha256={model: judged},
    )  # fmt: skip
