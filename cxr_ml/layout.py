"""Every key of the object store: what lies there and which package writes it. No other module spells one.

```
images/ab/abcd….jpg                        ingest      an image, free of metadata; named by its SHA-256
thumbnails/ab/abcd….jpg                    validation  a small picture of a refused image
batches/<batch>/ingested/<shard>.parquet   ingest      measurements of one shard of a drop
batches/<batch>/measurements.parquet       validation  all rows of a batch with their verdicts
batches/<batch>/refused.parquet            validation  the refused rows
batches/<batch>/<suite>.html               validation  Data Docs of a suite
batches/<batch>/batch.json                 validation  commit mark: the batch is judged
rulings/<number>.json                      validation  what a human decided on refused images
datasets/<n>/manifest.parquet              dataset     a row per image with label, group and split
datasets/<n>/dataset.html                  dataset     Data Docs of the dataset's suite
datasets/<n>/dataset.json                  dataset     commit mark: the version exists
features/<network>/…                       training    outputs of a frozen backbone, used by every later training
models/<model>/checkpoints/…               training    state after the last finished epoch; removed at the end
models/<model>/model.keras                 training    the network
models/<model>/validation.npy              training    what it predicted of the validation images
models/<model>/likeness.npz                training    what tells whether an image is unlike the training images
models/<model>/history.csv                 training    a row per epoch
models/<model>/model.json                  training    commit mark: the model is trained
models/<model>/predictions-d<n>.parquet    evaluation  what it predicted of a dataset's test images
models/<model>/explanation-d<n>….png|json  evaluation  Grad-CAM contact sheets
models/<model>/evaluation….json            evaluation  figures, beside one champion on one dataset
reports/<run>/decision.json                registry    what the gate decided
registry/history/<number>.json             registry    promotions, refusals, rollbacks; only added to
registry/champion.json                     registry    the champion; the one object that is replaced
models/<model>/swept.json                  registry    the weights of a refused candidate were removed
models/<model>/card….md                    reporting   model card
reports/<run>/…                            reporting   report, figures, mails sent; run.json is the commit mark
```
"""

BATCHES = "batches/"
DATASETS = "datasets/"
HISTORY = "registry/history/"
CHAMPION = "registry/champion.json"
IMAGES = "images/"
MODELS = "models/"
REPORTS = "reports/"
RULINGS = "rulings/"
THUMBNAILS = "thumbnails/"


def image(sha256: str, extension: str) -> str:
    """Key of an image."""
    return f"{IMAGES}{sha256[:2]}/{sha256}.{extension}"


def thumbnail(sha256: str) -> str:
    """Key of the small picture of a refused image."""
    return f"{THUMBNAILS}{sha256[:2]}/{sha256}.jpg"


def shards(batch: str) -> str:
    """Prefix of the tables of a batch's shards."""
    return f"{BATCHES}{batch}/ingested/"


def shard(batch: str, number: int) -> str:
    """Key of the table of one shard of a batch."""
    return f"{shards(batch)}{number:05d}.parquet"


def measurements(batch: str) -> str:
    """Key of the table of all rows of a batch."""
    return f"{BATCHES}{batch}/measurements.parquet"


def refused_rows(batch: str) -> str:
    """Key of the table of the refused rows of a batch."""
    return f"{BATCHES}{batch}/refused.parquet"


def batch_data_docs(batch: str, suite: str) -> str:
    """Key of the page that says what a suite found in a batch."""
    return f"{BATCHES}{batch}/{suite}.html"


def batch_record(batch: str) -> str:
    """Key of a batch's record, the mark that it is judged."""
    return f"{BATCHES}{batch}/batch.json"


def ruling(number: int) -> str:
    """Key of a ruling."""
    return f"{RULINGS}{number:05d}.json"


def manifest(dataset: int) -> str:
    """Key of the table of a dataset version's images."""
    return f"{DATASETS}{dataset}/manifest.parquet"


def dataset_data_docs(dataset: int) -> str:
    """Key of the page that says what the dataset's suite found."""
    return f"{DATASETS}{dataset}/dataset.html"


def dataset_record(dataset: int) -> str:
    """Key of a dataset version's record, the mark that it exists."""
    return f"{DATASETS}{dataset}/dataset.json"


def features(network: str, version: int, size: int) -> str:
    """Folder of the outputs of a frozen backbone for images of one size."""
    return f"features/{network}-{version}-{size}"


def checkpoints(model: str) -> str:
    """Prefix of the state of a training that has not ended."""
    return f"{MODELS}{model}/checkpoints/"


def model_weights(model: str) -> str:
    """Key of the Keras file of a model."""
    return f"{MODELS}{model}/model.keras"


def model_record(model: str) -> str:
    """Key of a model's record, the mark that it is trained."""
    return f"{MODELS}{model}/model.json"


def model_file(model: str, file: str) -> str:
    """Key of a file beside a model's record, by its name."""
    return f"{MODELS}{model}/{file}"


def training_curves(model: str) -> str:
    """Key of the table of a model's epochs."""
    return f"{MODELS}{model}/history.csv"


def validation_predictions(model: str) -> str:
    """Key of what a model predicted of the validation images before it was stored."""
    return f"{MODELS}{model}/validation.npy"


def ood_detector(model: str) -> str:
    """Key of what tells whether an image is unlike a model's training images."""
    return f"{MODELS}{model}/likeness.npz"


def predictions(model: str, dataset: int) -> str:
    """Key of what a model predicted of a dataset's images."""
    return f"{MODELS}{model}/predictions-d{dataset}.parquet"


def explanation(model: str, dataset: int) -> str:
    """Key of the record of a model's contact sheets."""
    return f"{MODELS}{model}/explanation-d{dataset}.json"


def contact_sheet(model: str, dataset: int, place: int) -> str:
    """Key of one contact sheet of a model."""
    return f"{MODELS}{model}/explanation-d{dataset}-{place}.png"


def evaluation(model: str) -> str:
    """Key of the first evaluation of a model."""
    return f"{evaluations(model)}.json"


def later_evaluation(model: str, dataset: int, champion: str | None, failed: bool) -> str:
    """Key of an evaluation on another dataset or beside another champion than the first.

    Args:
        model: the model.
        dataset: number of the dataset version.
        champion: the champion beside it; None: there was none.
        failed: whether the champion was to be evaluated and could not be.
    """
    return f"{evaluations(model)}-d{dataset}-beside-{champion or 'none'}{'-failed' if failed else ''}.json"


def evaluations(model: str) -> str:
    """Prefix of all evaluations of a model."""
    return f"{MODELS}{model}/evaluation"


def removed_weights(model: str) -> str:
    """Key of the mark that a refused candidate's weights were removed."""
    return f"{MODELS}{model}/swept.json"


def model_card(model: str) -> str:
    """Key of the newest card of a model."""
    return f"{MODELS}{model}/card.md"


def model_card_of_run(model: str, run: str) -> str:
    """Key of the card of a model as a run left it."""
    return f"{MODELS}{model}/card-{run}.md"


def decision(run: str) -> str:
    """Key of what the gate decided in a run."""
    return f"{REPORTS}{run}/decision.json"


def history_entry(number: int) -> str:
    """Key of an entry of the registry's history."""
    return f"{HISTORY}{number:05d}.json"


def report_folder(run: str) -> str:
    """Prefix of everything that a run reports."""
    return f"{REPORTS}{run}/"


def report_page(run: str) -> str:
    """Key of the report of a run."""
    return f"{REPORTS}{run}/index.html"


def report_file(run: str, file: str) -> str:
    """Key of a file beside the report of a run, by its name."""
    return f"{REPORTS}{run}/{file}"


def failed_steps(run: str) -> str:
    """Prefix of the records of a run's failed steps."""
    return f"{REPORTS}{run}/failed/"


def failed_step(run: str, step: str) -> str:
    """Key of the record of a failed step."""
    return f"{REPORTS}{run}/failed/{step}.json"


def run_record(run: str) -> str:
    """Key of a run's record, the mark that it is reported."""
    return f"{REPORTS}{run}/run.json"


def sent_mail(run: str, kind: str, recipient: str) -> str:
    """Key of the mark that a mail was sent to somebody, who is named by a hash."""
    return f"{REPORTS}{run}/mailed/{kind}-{recipient}.json"


def unsent_mails(run: str) -> str:
    """Prefix of the mails of a run that could not be sent yet."""
    return f"{REPORTS}{run}/unsent/"


def unsent_mail(run: str, kind: str) -> str:
    """Key of the record of a mail that could not be sent yet."""
    return f"{REPORTS}{run}/unsent/{kind}.json"
