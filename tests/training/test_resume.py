"""A training that is killed at any moment goes on, and ends as if nothing had happened."""

import io

import numpy as np
import pandas as pd
import pytest
from killed_training import train_in_a_process
from model_samples import put_dataset, quick

from cxr_ml.store import ObjectStore
from cxr_ml.training import architectures, predictions

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shallow_light")]

SHORT = {"head_epochs": 3, "fine_tune_epochs": 3, "batch_size": 8, "dropout": 0.5}
# Where a process dies. One is killed after the other, each going on from what the last one left.
MOMENTS = [
    ("before write", 1), ("after write", 1), ("in a batch of the head", 2), ("before removal", 1),
    ("in a batch", 3), ("after write", 2), ("before write", 2), ("before write", 5), ("after write", 5),
]  # fmt: skip


def settings_with_weights(settings, tmp_path, **changes):
    """The light network with pretrained weights in a folder: the head is trained on stored features."""
    s = quick(settings, **SHORT | changes)
    path = tmp_path / "weights" / "light_notop.weights.h5"
    path.parent.mkdir(exist_ok=True)
    architectures.build_backbone(s.training, s.weights_dir, "light").network.save_weights(path)
    return s.replace(weights_dir=path.parent, training={"weights": "imagenet"})


def final_weights(s):
    (name,) = {key.split("/")[1] for key in ObjectStore(s.store).keys("models/")}
    return name, predictions.load_model(ObjectStore(s.store), name)[1].get_weights()


@pytest.mark.parametrize("pretrained", [True, False], ids=["head on features", "from scratch"])
def test_killed_again_and_again_it_ends_with_the_weights_of_an_undisturbed_training(settings, tmp_path, pretrained):
    s = settings_with_weights(settings, tmp_path) if pretrained else quick(settings, **SHORT)
    put_dataset(s)
    deaths = 0
    # The way of both is the same but for stored features, so half of the moments do for one of them.
    for what, number in MOMENTS if pretrained else MOMENTS[::2]:
        # A network from scratch has no stored features: its head's batches are those of all.
        moment = (what if pretrained else what.removesuffix(" of the head"), number)
        code = train_in_a_process(s, pretrained, moment)
        assert code in (0, -9)
        deaths += code == -9
    assert train_in_a_process(s, pretrained) == 0
    name, weights = final_weights(s)
    assert deaths >= (7 if pretrained else 3), "or this test shows little"
    assert not list(ObjectStore(s.store).keys(f"models/{name}/checkpoints/"))

    undisturbed = s.replace(store={"prefix": "undisturbed/"})
    put_dataset(undisturbed)
    assert train_in_a_process(undisturbed, pretrained) == 0
    other, expected = final_weights(undisturbed)
    assert name == other
    for now, then in zip(weights, expected, strict=True):
        np.testing.assert_allclose(now, then, atol=1e-6, rtol=0)
    histories = [
        pd.read_csv(io.BytesIO(ObjectStore(x.store).get(f"models/{name}/history.csv"))) for x in (s, undisturbed)
    ]
    assert list(histories[0]["stage"]) == ["head"] * 3 + ["fine_tune"] * 3
    for column in ("loss", "val_loss", "val_f1"):
        np.testing.assert_allclose(*(table[column] for table in histories), atol=1e-6)
