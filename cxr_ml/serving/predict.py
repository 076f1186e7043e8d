"""Predicts X-ray images by the champion or another model, with every check that ingest makes. Not a diagnosis."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import keras
import numpy as np

from cxr_ml.errors import Refused
from cxr_ml.evaluation import gradcam
from cxr_ml.imaging import decode, formats, measure
from cxr_ml.ingest import drop_files, memory_budget, process_file
from cxr_ml.records import Model, Prediction
from cxr_ml.registry import promotion, queries
from cxr_ml.serving import overlays
from cxr_ml.settings import ImageSettings, Settings
from cxr_ml.store import ObjectStore
from cxr_ml.training import calibration, inputs, ood, predictions
from cxr_ml.validation import single_image

UNLIKE = "unlike_training"  # code of an image that is unlike those the model was trained on
_BATCH = 32
_MAX_AHEAD = 2 * _BATCH  # images that are decoded while the network computes, or wait for it
_MAX_SIDE = 1024  # px, longest side of a film with the heat over it, but see `decode.shrink`
_one_large = Lock()

Source = Path | str | bytes
Predict = Callable[..., Iterator[Prediction]]


class _Look(NamedTuple):
    """An image that was read, judged and decoded; without pixels where it was refused."""

    file: str
    refused: tuple[str, ...] = ()
    pixels: np.ndarray | None = None  # uint8 (size, size, 1), as the network takes it
    film: np.ndarray | None = None  # uint8 (height, width), for a person


def load_predictor(store: ObjectStore, settings: Settings, model: str | None = None) -> Predict:
    """Returns a function that predicts images, each on its own, with a model that is loaded and verified once.

    It takes images, each a path or the bytes of a file (PNG, JPEG or DICOM), as a list or one by one, and a folder for
    overlays, `explain`, if they are wanted; and yields a `Prediction` for each, in order. While the network computes,
    the next images are read, judged by `images.json` and decoded; never more than about a hundred are in memory. An
    image that ingest would refuse is refused with the same codes; one that is unlike the training images, with
    "unlike_training".

    Args:
        store: the object store.
        settings: the limits on files, and the suites.
        model: name of a stored model, or a champion version such as v3; None: the champion.

    Raises:
        Refused: there is no champion or no such model, the stored model cannot be trusted, or a suite cannot be used.
    """
    champion = promotion.champion(store) if model is None else None
    if model is not None:
        name = queries.resolve(store, model)
    elif champion is not None:
        name = champion.model
    else:
        raise Refused("There is no champion yet. Run a retraining, or name a model.")
    record, network = predictions.load_model(store, name)
    if champion is not None and champion.artefact_sha256 != record.artefact_sha256:
        raise Refused(
            f"The champion's pointer and models/{champion.model}/model.json must name the same file. Received: SHA-256 "
            f"{champion.artefact_sha256} and {record.artefact_sha256}. Run `cxr-ml models verify {champion.model}`."
        )
    known = ood.load(store, record)
    judge = single_image.load_screen(settings.validation.expectations)
    wanted = [network.output, network.get_layer("features").output]
    plain, explained = (keras.Model(network.input, w) for w in (wanted, [*wanted, gradcam.class_maps(network)]))

    def predict(sources: Iterable[Source], explain: Path | None = None) -> Iterator[Prediction]:
        def look(source: Source) -> _Look:
            return _look(store, settings.images, judge, record.image_size, explain is not None, source)

        looked = _ahead(look, sources)
        while looks := tuple(islice(looked, _BATCH)):
            yield from _answers(record, known, plain if explain is None else explained, looks, explain)

    return predict


def _ahead(look: Callable[[Source], _Look], sources: Iterable[Source]) -> Iterator[_Look]:
    """`look` of each source, in order, in threads that are at most _MAX_AHEAD images ahead of the caller."""
    remaining, pending = iter(sources), deque[Future[_Look]]()
    pool = ThreadPoolExecutor(memory_budget.count_cores())
    try:
        pending.extend(pool.submit(look, source) for source in islice(remaining, _MAX_AHEAD))
        while pending:
            look_result = pending.popleft().result()
            pending.extend(pool.submit(look, source) for source in islice(remaining, 1))
            yield look_result
    finally:
        pool.shutdown(cancel_futures=True)


def _look(
    store: ObjectStore, settings: ImageSettings, judge: single_image.Screen, size: int, film: bool, source: Source
) -> _Look:
    name = "" if isinstance(source, bytes) else str(source)
    try:
        data = source if isinstance(source, bytes) else _read(store, settings, Path(source))
        with _one_large if process_file.count_pixels(data) > memory_budget.LARGE_PIXELS else nullcontext():
            measured, grey = measure.measure_and_decode(data, settings)
            if refused := judge(dict(measured)):
                return _Look(name, refused)
    except formats.BadImage as error:
        return _Look(name, (error.code,))
    return _Look(name, (), inputs.resize(grey, size), decode.shrink(grey, _MAX_SIDE) if film else None)


def _read(store: ObjectStore, settings: ImageSettings, path: Path) -> bytes:
    try:
        return drop_files.read_file(
            store, settings, drop_files.make_entry(str(path), os.path.realpath(path), path.stat())
        )
    except (FileNotFoundError, ValueError):  # ValueError: a name with a NUL byte
        raise formats.BadImage("file_missing", f"A file was expected. Received: {str(path)!r}, which is none") from None
    except (OSError, Refused) as error:  # a broken disk, or a file that changes at this moment
        raise formats.BadImage("unreadable", f"A file that can be read was expected. Received: {error}") from None


def _answers(
    record: Model, known: ood.Detector, network: keras.Model, looks: tuple[_Look, ...], folder: Path | None
) -> Iterator[Prediction]:
    fit = [look for look in looks if look.pixels is not None]
    rows: Iterator[Prediction] = iter(())
    if fit:
        rows = _predicted(record, known, network, fit, folder)
    for look in looks:
        if look.pixels is not None:
            yield next(rows)
        else:
            yield Prediction(
                file=look.file, model=record.model, predicted=None, confidence=None, probabilities=None,
                unlikeness=None, refused=look.refused,
            )  # fmt: skip


def _predicted(
    record: Model, known: ood.Detector, network: keras.Model, fit: list[_Look], folder: Path | None
) -> Iterator[Prediction]:
    pixels = np.stack([look.pixels for look in fit if look.pixels is not None])
    raw, features, *maps = network.predict_on_batch(pixels)
    if not np.isfinite(raw).all():
        raise Refused(f"Probabilities must be numbers. Received: NaN or infinity; {record.model} cannot be used.")
    probabilities, decided = calibration.apply(raw, record.operating_point, record.classes)
    distance = ood.ood_score(known, features, pixels)
    heat = None if folder is None else gradcam.relative(maps[0], decided)
    for i, look in enumerate(fit):
        unlike = distance[i] > 1
        by_class = {c: round(float(p), 6) for c, p in zip(record.classes, probabilities[i], strict=True)}
        overlay = None
        if folder is not None and heat is not None and look.film is not None and not unlike:
            overlay = overlays.write(folder, look.file, look.film, heat[i])
        yield Prediction(
            file=look.file,
            model=record.model,
            predicted=None if unlike else record.classes[decided[i]],
            confidence=None if unlike else by_class[record.classes[decided[i]]],
            probabilities=None if unlike else by_class,
            unlikeness=round(float(distance[i]), 3),
            refused=(UNLIKE,) if unlike else (),
            overlay=overlay,
        )
