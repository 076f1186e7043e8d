"""Labels that the champion contradicts, for a human to look at. No label is ever changed by it."""

from pathlib import Path

import numpy as np

from cxr_ml.dataset import versions
from cxr_ml.errors import Refused
from cxr_ml.ingest import process_file
from cxr_ml.records import Dataset, LabelIssue, LabelReview
from cxr_ml.store import ObjectStore
from cxr_ml.training import inputs, predictions
from cxr_ml.validation import committed_batches


def find(store: ObjectStore, cache_dir: Path, dataset: Dataset, model: str, top: int) -> LabelReview:
    """Returns the images of a dataset whose label a model contradicts most, least believed label first.

    Looked at are the images that the model was not trained on: those of validation and test, and all that came later.
    Images of a patient, and copies of a picture, that it was trained on are left out with them. Early stopping looked
    at the validation images of that time, so on them the model is a little too sure.

    The order is cleanlab's label quality score "self_confidence", the probability of the given label; an `issue` is
    what confident learning finds likely to be mislabelled, given how sure the model is of each class: Northcutt, Jiang
    and Chuang, Confident Learning: Estimating Uncertainty in Dataset Labels, JAIR 70, 2021.

    Args:
        store: the store, the cache folder.
        cache_dir: folder of what may be deleted between runs.
        dataset: the version whose labels are doubted.
        model: name of the model that doubts them.
        top: how many are named at most. Only labels that are not the model's own answer, or are issues, are named.

    Raises:
        Refused: the model or a manifest cannot be used, or it was trained on every image.
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    record, network = predictions.load_model(store, model)
    trained = versions.load_manifest(store, versions.load_dataset(store, record.dataset))
    trained = trained[trained["split"] == "train"]
    images, manifest = inputs.load(store, cache_dir, dataset, record.image_size)
    unknown = sorted(set(manifest["label"]) - set(record.classes))
    if unknown:
        raise Refused(f"{model} must know the labels of dataset {dataset.dataset}. Received: {', '.join(unknown)}")
    trained_on = manifest["sha256"].isin(set(trained["sha256"])) | manifest["group"].isin(set(trained["group"]))
    rows = np.flatnonzero(~trained_on.to_numpy())
    if not len(rows):
        raise Refused(f"{model} was trained on all images of dataset {dataset.dataset}: there is nothing to hold out.")
    held_out = manifest.iloc[rows].reset_index(drop=True)
    y = inputs.targets(held_out, record.classes)
    p = predictions.predict_probabilities(network, images, rows)
    quality = get_label_quality_scores(y, p, method="self_confidence")
    issues = np.zeros(len(y), bool)
    if len(set(y.tolist())) == len(record.classes):
        issues = find_label_issues(y, p, filter_by="prune_by_noise_rate", n_jobs=1)
    order = np.argsort(quality, kind="stable")
    order = order[(p.argmax(axis=1) != y)[order] | issues[order]][:top]
    names = _files(store, [held_out.at[i, "batch"] for i in order])
    named = []
    for i in order:
        row, best = held_out.iloc[i], int(p[i].argmax())
        named.append(
            LabelIssue(
                sha256=row["sha256"],
                batch=row["batch"],
                file=names.get((row["batch"], row["sha256"]), ""),
                image=process_file.image_key(row["sha256"], row["format"]),
                label=row["label"],
                probability=float(quality[i]),
                suggested=record.classes[best],
                suggested_probability=float(p[i, best]),
                split=row["split"],
                issue=bool(issues[i]),
            )
        )
    said = _describe(model, dataset, len(rows), len(manifest))
    return LabelReview(dataset=dataset.dataset, model=model, looked_at=len(rows), said=said, doubts=tuple(named))


def _describe(model: str, dataset: Dataset, held_out: int, images: int) -> str:
    return (
        f"{model} was asked about {held_out} of the {images} images of dataset {dataset.dataset}. The other "
        f"{images - held_out} were left out: it was trained on them, or on others of their patient or picture. Early "
        "stopping saw the validation images of that time, so it is a little too sure of those. A doubt is a reason to "
        "look at the film; `cxr-ml quarantine relabel` or `withdraw` then rules on it."
    )


def _files(store: ObjectStore, names: list[str]) -> dict[tuple[str, str], str]:
    """(batch, sha256) -> file, for these batches."""
    files: dict[tuple[str, str], str] = {}
    for name in sorted(set(names)):
        table = committed_batches.read_measurements(store, name)
        for sha, file in zip(table["sha256"], table["file"], strict=True):
            files.setdefault((name, sha), file)
    return files
