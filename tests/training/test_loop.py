"""One stage at a time: what is stored of it, what it goes on from, and what stops it."""

import math
import os
import pty
import re
import sys
import threading
from contextlib import suppress

import keras
import numpy as np
import pytest
import tensorflow as tf
from model_samples import CLASSES, overwrite, quick
from pydantic import create_model
from scipy.special import softmax
from sklearn.metrics import log_loss

from cxr_ml.errors import Refused
from cxr_ml.store import ObjectStore
from cxr_ml.training import batching, checkpoints, distribution, inputs, keras_metrics, loop
from cxr_ml.training.checkpoints import Epoch, Progress
from cxr_ml.training.loop import Stage, StageBatches

EAGER = pytest.mark.usefixtures("eager")
THREE = Stage("head", 3, 1e-2)
N = 43  # no multiple of any batch size here


def small_network(dropout: float = 0.0) -> keras.Model:
    keras.utils.set_random_seed(3)
    x = inputs = keras.Input((6,))
    x = keras.layers.Dense(8, activation="tanh")(x)
    x = keras.layers.Dropout(dropout)(x)
    return keras.Model(inputs, keras.layers.Dense(3, activation="softmax", dtype="float32")(x))


def data(batch_size: int):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, N)
    x = rng.normal(size=(N, 6)).astype("float32")
    x[:, 0] += y
    weights = rng.uniform(0.3, 4, N)
    return StageBatches(
        batching.ShuffledRows(x, y, weights, batch_size, 0), inputs.Batches(x, np.arange(20), 32, y[:20])
    )


def run(settings, network, stage=THREE, given=data, **changes):
    s = quick(settings, **{"batch_size": 16} | changes)
    return loop.train_stage(
        ObjectStore(s.store), s, "m", network, stage, "f" * 64, lambda: given(s.training.batch_size), verbose=False
    )


@EAGER
def test_each_step_and_each_epoch_is_told_with_what_the_last_epoch_gave(settings):
    s, seen = quick(settings, batch_size=16), []
    progress = loop.train_stage(
        ObjectStore(s.store), s, "m", small_network(), THREE, "f" * 64, lambda: data(16), False, seen.append
    )
    assert {(told.unit, told.total, told.stage) for told in seen} == {("epochs", 3, "head")}
    steps = [(told.done, told.within) for told in seen if told.within]
    assert steps == [(epoch, (step, 3)) for epoch in range(3) for step in range(4)]
    ended = [told for told in seen if not told.within]
    assert [told.done for told in ended] == [1, 2, 3]
    assert [told.val_macro_f1 for told in ended] == [epoch.val_f1 for epoch in progress.epochs]
    seconds = [epoch.seconds for epoch in progress.epochs]
    assert ended[1].seconds_left == pytest.approx((seconds[0] + seconds[1]) / 2)
    assert ended[2].seconds_left == 0
    assert all(told.val_macro_f1 is None and told.seconds_left is None for told in seen if not told.done)
    again = []
    loop.train_stage(
        ObjectStore(s.store),
        s,
        "m",
        small_network(),
        Stage("head", 4, 1e-2),
        "f" * 64,
        lambda: data(16),
        False,
        again.append,
    )
    assert [(told.done, told.within) for told in again] == [(3, (step, 3)) for step in range(4)] + [(4, None)]


def keys(settings) -> list[str]:
    return list(ObjectStore(settings.store).keys("models/m/checkpoints/"))


def limit_memory(network: keras.Model, images: int) -> list[int]:
    """Makes a training step of more images than so many run out of memory, as TensorFlow reports it; sizes seen."""
    step, seen = network.train_step, []

    def allocate(x):
        seen.append(len(x))
        if len(x) > images:
            raise MemoryError("too many images")
        return np.float32(0)

    def train_step(batch):
        with tf.control_dependencies([tf.numpy_function(allocate, [batch[0]], tf.float32)]):
            return step(batch)

    network.train_step = train_step
    return seen


def test_the_error_of_a_full_device_is_the_real_one():
    network = small_network()
    limit_memory(network, 4)
    network.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(tf.errors.ResourceExhaustedError):
        network.fit(data(8)[0], verbose=0)


@pytest.mark.slow
@pytest.mark.parametrize(("fits", "pieces", "traced"), [(5, 4, True), (1, 16, False)])
def test_a_batch_that_does_not_fit_goes_through_memory_in_pieces_and_gives_the_same_steps(
    settings, eager, fits, pieces, traced
):
    whole, pieced, stage = small_network(), small_network(), Stage("head", 2, 1e-2)
    expected = run(settings.replace(store={"prefix": "whole/"}), whole, stage)
    seen = limit_memory(pieced, fits)
    tf.config.run_functions_eagerly(not traced)
    found = run(settings, pieced, stage)
    assert (expected.micro_batches, found.micro_batches) == (1, pieces)
    assert max(seen[-found.micro_batches :]) <= fits
    for now, then in zip(pieced.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(now, then, atol=1e-5)
    for now, then in zip(found.epochs, expected.epochs, strict=True):
        assert now.val_loss == pytest.approx(then.val_loss, abs=1e-5)
    optimizer = pieced.optimizer
    assert int(optimizer.iterations) == 2 * 3, "steps, not pieces"


@EAGER
def test_memory_that_holds_not_even_one_image_is_refused_with_the_setting_to_change(settings):
    network = small_network()
    limit_memory(network, 0)
    with pytest.raises(
        Refused, match=r"with one image at a time\. Set a smaller image_size \(CXR_TRAINING__IMAGE_SIZE; now 32"
    ):
        run(settings, network)
    assert keys(settings) == []


@EAGER
@pytest.mark.slow
def test_memory_that_runs_out_in_a_later_epoch_does_not_undo_the_earlier_ones(settings):
    whole, pieced = small_network(), small_network()
    expected = run(settings.replace(store={"prefix": "whole/"}), whole)
    run(settings, pieced, Stage("head", 1, 1e-2))
    limit_memory(pieced, 8)
    found = run(settings, pieced)
    assert found.micro_batches == 2 and found.epochs[0].loss == pytest.approx(expected.epochs[0].loss)
    for now, then in zip(pieced.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(now, then, atol=1e-5)
    # The next attempt begins with what fitted.
    seen = limit_memory(again := small_network(), 8)
    more = run(settings, again, Stage("head", 4, 1e-2))
    assert more.micro_batches == 2 and max(seen) <= 8 and len(more.epochs) == 4


@EAGER
@pytest.mark.slow
def test_a_stage_goes_on_with_the_random_numbers_that_it_would_have_drawn(settings):
    one, two = small_network(dropout=0.5), small_network(dropout=0.5)
    expected = run(settings.replace(store={"prefix": "whole/"}), one, Stage("head", 4, 1e-2))
    run(settings, two, Stage("head", 2, 1e-2))
    keras.utils.set_random_seed(99)
    found = run(settings, two, Stage("head", 4, 1e-2))
    for now, then in zip(found.epochs, expected.epochs, strict=True):
        assert (now.loss, now.val_loss) == pytest.approx((then.loss, then.val_loss), abs=1e-6)


def misleading(batch_size: int):
    """The more is learned, the worse the validation loss."""
    batches, validation = data(batch_size)
    validation.y = (validation.y + 1) % 3
    return StageBatches(batches, validation)


def test_only_the_newest_two_epochs_and_the_best_one_are_kept(store, settings):
    run(settings, small_network(), Stage("head", 9, 1e-2), misleading, patience=9)
    found = checkpoints.load_newest(
        store,
        "m",
        Progress(stage="head", backbone_sha256="f" * 64, decay=False),
        [w.shape for w in small_network().weights],
    )
    kept = {int(re.search(r"head-(\d+)", key)[1]) for key in keys(settings)}
    assert kept == {checkpoints.best_epoch(found.progress), 8, 9}
    assert checkpoints.best_epoch(found.progress) < 8, "or this test shows less"


@EAGER
@pytest.mark.slow
def test_a_broken_checkpoint_is_left_out_loudly_in_favour_of_the_one_before(store, settings, caplog):
    expected = run(settings.replace(store={"prefix": "whole/"}), small_network())
    run(settings, small_network(), Stage("head", 2, 1e-2))
    last = max(keys(settings))
    spoiled = bytearray(store.get(last))
    spoiled[len(spoiled) // 2] ^= 1
    overwrite(settings, last, bytes(spoiled))
    found = run(settings, network := small_network())
    assert f"{last} is not used: its bytes are not those that were written" in caplog.text
    assert [e.loss for e in found.epochs] == pytest.approx([e.loss for e in expected.epochs], abs=1e-6)
    assert network.optimizer.iterations == 3 * 3
    # All of them broken: it begins anew, and says so of each.
    for key in keys(settings):
        overwrite(settings, key, b"not an archive")
    caplog.clear()
    assert len(run(settings, small_network(), Stage("head", 1, 1e-2)).epochs) == 1
    assert len(caplog.messages) >= 2


@EAGER
def test_a_checkpoint_of_other_first_weights_network_or_version_is_not_gone_on_from(
    store, settings, caplog, monkeypatch
):
    run(settings, network := small_network(), Stage("head", 2, 1e-2))
    shapes = [w.shape for w in network.weights]
    fresh = Progress(stage="head", backbone_sha256="f" * 64, decay=False)
    assert checkpoints.load_newest(store, "m", fresh, shapes) is not None
    assert checkpoints.load_newest(store, "m", fresh.model_copy(update={"backbone_sha256": "e" * 64}), shapes) is None
    assert "from other first weights" in caplog.text
    assert checkpoints.load_newest(store, "m", fresh, shapes[:-1]) is None
    assert "do not fit the network" in caplog.text
    monkeypatch.setattr(checkpoints, "Progress", create_model("Progress", __base__=Progress, more=(int, ...)))
    assert checkpoints.load_newest(store, "m", fresh, shapes) is None
    assert "of another version of cxr-ml" in caplog.text


STOPPED = (
    r"(?s)training of m was stopped at once: its loss exploded in epoch 3 of head\.\n"
    r"Expected: .* below \d{3}\.\d\. Received: the mean loss .* until step 2 is (nan|1e\+04)\.\n"
    r"Losses of the epochs before: \d\.\d{4}, \d\.\d{4}\. Last good epoch, which is kept: epoch 2, in "
    r"models/m/checkpoints/\. No model is written\.\n"
    r"Start a new run with a smaller head_learning_rate \(CXR_TRAINING__HEAD_LEARNING_RATE, or the form; now 0\.01\)"
)


@EAGER
@pytest.mark.parametrize("loss", [np.nan, 1e4])
def test_a_loss_that_explodes_within_an_epoch_stops_the_stage_there_and_the_last_good_epoch_is_kept(settings, loss):
    run(settings, small_network(), Stage("head", 2, 1e-2))
    network, steps = small_network(), []
    step = network.train_step

    def train_step(batch):
        def count():
            steps.append(1)
            return np.float32(loss if len(steps) >= 2 else 0)

        return {"loss": step(batch)["loss"] + tf.numpy_function(count, [], tf.float32)}

    network.train_step = train_step
    with pytest.raises(Refused, match=STOPPED):
        run(settings, network, Stage("head", 4, 1e-2))
    assert len(steps) < 4, "stopped within the epoch"
    assert {re.search(r"-(\d+)-", key)[1] for key in keys(settings)} == {"00001", "00002"}


@EAGER
@pytest.mark.parametrize("loss", [np.nan, 1e6])
def test_a_validation_loss_that_explodes_stops_the_stage_and_the_last_good_epoch_is_kept(settings, loss):
    run(settings, small_network(), Stage("head", 1, 1e-2))
    network = small_network()
    step = network.test_step
    network.test_step = lambda batch: {"loss": 0 * step(batch)["loss"] + loss}
    with pytest.raises(Refused, match=r"in epoch 2 of head\.\n.*Received: the validation loss is (nan|1e\+06)\."):
        run(settings, network, Stage("head", 4, 1e-2))
    assert {re.search(r"-(\d+)-", key)[1] for key in keys(settings)} == {"00001"}


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_in_mixed_precision_a_stage_goes_on_from_its_checkpoint_also_in_pieces(settings, monkeypatch, eager, policy):
    monkeypatch.setattr(distribution, "choose_precision", lambda: policy)
    with distribution.mixed_precision():
        whole, killed, stage = small_network(dropout=0.5), small_network(dropout=0.5), Stage("head", 2, 1e-2)
        expected = run(settings.replace(store={"prefix": "whole/"}), whole, stage)
        run(settings, killed, Stage("head", 1, 1e-2))
        found = run(settings, again := small_network(dropout=0.5), stage)
        assert [e.loss for e in found.epochs] == pytest.approx([e.loss for e in expected.epochs], abs=1e-6)
        for now, then in zip(again.get_weights(), whole.get_weights(), strict=True):
            np.testing.assert_allclose(now, then, atol=1e-6)
        limit_memory(pieced := small_network(dropout=0.5), 8)
        # A scaled loss and gathered gradients branch within a step, so they are traced as in a real training.
        tf.config.run_functions_eagerly(policy != "mixed_float16")
        more = run(settings, pieced, Stage("head", 3, 1e-2))
    assert more.micro_batches == 2 and len(more.epochs) == 3
    assert int(pieced.optimizer.iterations) == 3 * 3, "steps, not pieces"
    assert ("LossScale" in type(pieced.optimizer).__name__) == (policy == "mixed_float16")


def test_a_line_says_what_the_epoch_gave_and_how_long_the_rest_takes_at_most():
    row = Epoch(
        loss=0.5, accuracy=0.8, val_loss=0.4, val_accuracy=0.9, f1=0.7, val_f1=0.8123, calibrated=0.45,
        val_calibrated=0.36, learning_rate=1e-5, images_per_second=12.34, seconds=100,
    )  # fmt: skip
    worse = row.model_copy(update={"val_calibrated": 0.37, "seconds": 80})
    progress = Progress(stage="fine_tune", backbone_sha256="", decay=False, epochs=(row, worse))
    assert loop.describe_last_epoch(Stage("fine_tune", 50, 1e-5), progress) == (
        "fine_tune: epoch 2 of 50, loss 0.5000, val loss 0.4000, calibrated 0.3700, val macro F1 0.812, "
        "learning rate 1e-05, 12.3 images/s, at most 1:12:00 left"
    )
    progress = progress.model_copy(update={"epochs": (worse, row)})
    assert "calibrated 0.3600 (best so far)," in loop.describe_last_epoch(Stage("fine_tune", 50, 1e-5), progress)
    assert "calibrated 0.3600, val" in loop.describe_last_epoch(Stage("fine_tune", 50, 1e-5, decay=True), progress)


def printed(settings, monkeypatch, ends: tuple[int, int]) -> str:
    """What a training of three epochs prints into the second end of a pseudo-terminal or pipe."""
    read_from, write_to = ends
    seen = []

    def read():
        with suppress(OSError):  # so a terminal tells that the other end is closed
            while data := os.read(read_from, 4096):
                seen.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(write_to, "w") as stdout, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        s = quick(settings, batch_size=16)
        loop.train_stage(ObjectStore(s.store), s, "m", small_network(), THREE, "f" * 64, lambda: data(16), verbose=True)
    reader.join()
    os.close(read_from)
    return b"".join(seen).decode().replace("\r\n", "\n")


def test_a_terminal_shows_a_bar_and_then_the_line_of_each_epoch(settings, monkeypatch):
    shown = printed(settings, monkeypatch, pty.openpty())
    assert "━" in shown and "3/3" in shown
    assert re.findall(r"^head: epoch (\d) of 3, loss", shown, re.M) == ["1", "2", "3"]


def test_a_log_shows_a_line_per_epoch_and_nothing_else(settings, monkeypatch):
    lines = printed(settings, monkeypatch, os.pipe()).splitlines()
    assert [line.split(",")[0] for line in lines] == [f"head: epoch {n} of 3" for n in (1, 2, 3)]


def test_macro_f1_of_an_epoch_is_scikit_learns(settings):
    from sklearn.metrics import f1_score

    network = small_network()
    found = run(settings, network, Stage("head", 1, 1e-2))
    x, y = data(16)[1][0]
    expected = f1_score(y, network.predict(x, verbose=0).argmax(axis=1), average="macro")
    assert found.epochs[0].val_f1 == pytest.approx(expected, abs=1e-6)
    assert len(CLASSES) == 3


@EAGER
@pytest.mark.slow
def test_a_learning_rate_that_decays_falls_along_half_a_cosine_and_another_stays(settings):
    stage = Stage("fine_tune", 4, 1e-2, decay=True)
    falling = run(settings, small_network(), stage)
    expected = [1e-2 * (1 + math.cos(math.pi * n / 4)) / 2 for n in range(4)]
    np.testing.assert_allclose([e.learning_rate for e in falling.epochs], expected, rtol=1e-5)
    steady = run(settings, small_network(), Stage("head", 2, 1e-2))
    np.testing.assert_allclose([e.learning_rate for e in steady.epochs], 1e-2)


@EAGER
@pytest.mark.slow
def test_a_stage_whose_rate_falls_is_run_to_its_end_and_kept_there_also_when_it_was_killed(settings, monkeypatch):
    stage = Stage("fine_tune", 5, 1e-2, decay=True)
    progress = run(
        settings.replace(store={"prefix": "whole/"}), whole := small_network(), stage, misleading, patience=1
    )
    losses = [epoch.val_calibrated for epoch in progress.epochs]
    assert len(losses) == 5 and losses[-1] > min(losses), "or this test shows nothing"
    p = whole.predict(misleading(16)[1][0][0], verbose=0)
    assert log_loss(misleading(16)[1].y, p, labels=[0, 1, 2]) == pytest.approx(progress.epochs[-1].val_loss, abs=1e-5)

    def save(*args):
        stored(*args)
        if len(args[2].epochs) == 3:
            sys.exit("killed")

    with monkeypatch.context() as patch, pytest.raises(SystemExit):  # noqa: PT012
        stored = checkpoints.save
        patch.setattr(checkpoints, "save", save)
        run(settings, small_network(), stage, misleading, patience=1)
    assert {re.search(r"-(\d+)-", key)[1] for key in keys(settings)} == {"00002", "00003"}, "the newest two are enough"
    for _ in range(2):  # the second finds the stage ended
        again = small_network()
        run(settings, again, stage, misleading, patience=1)
        for now, then in zip(again.get_weights(), whole.get_weights(), strict=True):
            np.testing.assert_allclose(now, then, atol=1e-6)


@pytest.mark.slow
def test_an_epoch_is_chosen_by_its_validation_loss_at_the_best_temperature(settings):
    def overconfident(batch_size):  # one target in five is wrong: the surer the network, the larger the plain loss
        batches, validation = data(batch_size)
        validation.y = np.where(np.arange(20) % 5 == 0, (validation.y + 1) % 3, validation.y)
        return StageBatches(batches, validation)

    progress = run(settings, network := small_network(), Stage("head", 24, 5e-2), overconfident, patience=24)
    _, validation = overconfident(16)
    p = np.concatenate([network.predict(validation[i][0], verbose=0) for i in range(len(validation))])
    logits = np.log(p)
    calibrated = min(
        log_loss(validation.y, softmax(logits / t, axis=1), labels=[0, 1, 2]) for t in keras_metrics.TEMPERATURES
    )
    chosen = checkpoints.best_epoch(progress)
    assert progress.epochs[chosen - 1].val_calibrated == pytest.approx(calibrated, abs=1e-5)
    assert calibrated == pytest.approx(min(epoch.val_calibrated for epoch in progress.epochs), abs=1e-5)
    plain = [epoch.val_loss for epoch in progress.epochs]
    assert chosen != 1 + int(np.argmin(plain)), "or this test shows less"
