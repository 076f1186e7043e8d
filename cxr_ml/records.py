"""The frozen records that stages hand on. Each is stored as JSON; loading one checks names and types.

One file, in the order of the stages, because it is looked up like a table: every field with its unit, in one place.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Record(BaseModel):
    """Base of all records: immutable, no unknown fields, NaN kept as NaN so that the gate can refuse it."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants", protected_namespaces=())

    def to_bytes(self) -> bytes:
        """JSON as it is stored: indented, UTF-8, newline at the end."""
        return self.model_dump_json(indent=2).encode() + b"\n"


def _check_version(version: object) -> object:
    if version != 1:
        raise ValueError(
            f"schema_version 1 was expected. Received: {version!r}. Another version of cxr-ml wrote this record: read "
            "it with that version, or begin a new store."
        )
    return version


class StoredRecord(Record):
    """Base of the records that are stored as an object of their own. One of another schema version is refused."""

    schema_version: Annotated[Literal[1], BeforeValidator(_check_version)] = 1


class Failure(Record):
    """One Great Expectations expectation that was not met."""

    suite: str  # images, classes or dataset
    expectation: str  # e.g. expect_column_values_to_be_between
    column: str
    limit: str  # e.g. "≤ 0.005"
    observed: str  # e.g. "3 of 1318 rows", or the value
    subject: str = ""  # the class, for classes.json
    severity: str = "critical"  # or warning: shown, without a consequence


class Batch(StoredRecord):
    """What became of one drop."""

    batch: str  # <name of the drop>-<8 hex digits of its listing>
    drop: str  # name of the drop
    counts: dict[str, dict[str, int]]  # verdict -> label -> files; label "?" where unknown
    reasons: dict[str, int]  # reason code -> files
    rejected_classes: dict[str, str]  # label -> why
    failures: tuple[Failure, ...] = ()
    untrained: dict[str, int] = {}  # known label that the model is not trained on -> accepted images


class Ruling(StoredRecord):
    """What a human ruled on one image; stored as `rulings/<00001>.json`. The last ruling on an image is in force."""

    number: int
    sha256: str
    batch: str  # of the row that it was ruled on
    file: str  # likewise
    action: str  # release (in, as labelled), relabel (in, with another label) or withdraw (out)
    label: str  # of the image from now on; of a withdrawn one, the label that it had
    by: str
    why: str
    at: str  # ISO 8601, UTC
    reasons: tuple[str, ...] = ()  # codes for which it was refused, which the ruling sets aside


class Probe(Record):
    """How well a linear probe that sees no lungs tells the classes apart."""

    sees: str  # border, or encoding (size, format, mode, bits, bytes)
    balanced_accuracy: float | None  # cross-validated over groups; None where it was not measured
    chance: float  # balanced accuracy of guessing
    images: int  # that it was measured on, or could have been
    limit: float  # balanced accuracy above which it is a warning
    why: str = ""  # one sentence where it was not measured


class Shift(Record):
    """A measure in which the new images of a class differ from those trained on, beyond chance."""

    label: str
    measure: str
    statistic: float  # Kolmogorov-Smirnov, 0 alike to 1 apart
    p: float  # of one test


class Drift(Record):
    """How new images lie beside those of an earlier dataset. None where there was nothing to compare."""

    against: int | None  # dataset whose training images the measures were compared with: the champion's, or the parent
    images: int = 0  # that are new since
    class_shares: float | None = None  # total variation distance to the parent's, 0 to 1
    measures: float | None = None  # the largest statistic of `shifts`; 0 where there is none
    shifts: tuple[Shift, ...] = ()  # largest first
    why: str = ""  # one sentence where something was not compared


class Dataset(StoredRecord):
    """A version of the training data: the union of batches, split by group."""

    dataset: int
    parent: int | None
    batches: tuple[str, ...]
    counts: dict[str, dict[str, int]]  # split -> label -> images
    manifest_sha256: str
    rulings: int = 0  # the rulings 1 to this one are honoured
    withheld: tuple[str, ...] = ()  # images out for good: their group turned out to have others in a stricter split
    shortcuts: tuple[Probe, ...] = ()  # on the training and validation images
    drift: Drift | None = None  # None: not compared
    warnings: tuple[Failure, ...] = ()  # expectations of severity "warning" that it does not meet


class OperatingPoint(Record):
    """Where a model draws the line between classes; fitted on validation images."""

    temperature: float  # divides the logits; 1: probabilities as the network gives them
    offsets: dict[str, float]  # label -> added to the logarithm of its probability before the largest is taken
    floors: dict[str, float]  # label -> recall that was wanted on validation
    images: int  # that it was fitted on


class Model(StoredRecord):
    """A trained candidate."""

    model: str
    architecture: str
    dataset: int
    dataset_sha256: str  # manifest_sha256 of the dataset
    artefact_sha256: str  # of model.keras
    classes: tuple[str, ...]  # order of the outputs
    image_size: int  # pixels
    weights: str  # where the backbone's first weights came from
    weights_sha256: str  # "" when from scratch
    settings: dict[str, bool | str | int | float]  # hyper-parameters
    epochs: dict[str, int]  # stage -> epochs run
    seconds: dict[str, float]  # stage -> wall time
    images_per_second: dict[str, float]  # stage -> training images, or stored features in the frozen stage
    code: str  # "commit …" of the source, or "version …" of the package where there is no checkout
    packages: dict[str, str]  # package -> version
    hardware: dict[str, str | int]  # cpu, cores, memory_gib, gpus, system
    likeness_sha256: str  # of likeness.npz, by which an image unlike the training images is known
    operating_point: OperatingPoint | None  # None: the likeliest class, and probabilities as the network gives them
    validation_sha256: str  # of validation.npy: what the training process predicted for the validation images
    history_sha256: str  # of history.csv


class ClassMetrics(Record):
    """One class of a split. NaN where the class has no image, or was never predicted (precision)."""

    recall: float
    precision: float
    f1: float
    support: int  # images
    specificity: float
    auc: float  # of the class against all others


class Metrics(Record):
    """One model on some images."""

    classes: dict[str, ClassMetrics]
    macro_f1: float
    accuracy: float
    confusion: tuple[tuple[int, ...], ...]  # rows: true class, columns: predicted, in the order of `classes`
    log_loss: float  # nats
    brier: float  # 0 to 2
    calibration_error: float  # expected, 0 to 1
    intervals: dict[str, tuple[float, float]]  # 95 %, by the names of `metrics.name`, e.g. "recall COVID19"


class PerturbationResult(Record):
    """What a model predicts for changed test images: a reader of lungs would predict the same, or nothing."""

    change: str  # e.g. "lungs hidden"
    images: int
    recalls: dict[str, float]  # label -> recall on the changed images; NaN without images
    balanced_accuracy: float  # mean of the recalls
    before: float  # the same of the unchanged images
    decided_otherwise: float  # share of the images that get another class than unchanged
    shift: float  # mean total variation distance between the probabilities, 0 to 1


class Slice(Record):
    """The test images that have something in common."""

    by: str  # source, view, format, size or batch
    value: str
    images: int
    metrics: Metrics | None  # None where they are too few
    why: str = ""  # one sentence where they are too few


class Difference(Record):
    """Candidate less champion on the same images."""

    figures: dict[str, float]  # by the names of `metrics.name`
    intervals: dict[str, tuple[float, float]]  # 95 %, paired bootstrap over groups
    only_candidate: int  # images that only the candidate decides rightly
    only_champion: int
    mcnemar: float  # p of the exact test that either is as likely


class Evaluation(StoredRecord):
    """One model on one dataset version; the champion's on the same images beside it."""

    model: str
    architecture: str
    artefact_sha256: str
    dataset: int
    dataset_sha256: str
    validation: Metrics  # chooses between architectures
    test: Metrics  # only the gate; at the model's operating point, as is all else but `plain`
    plain: Metrics  # test images, by the most likely class and uncalibrated probabilities
    robustness: dict[str, Metrics]  # disguise -> the test images in it
    slices: tuple[Slice, ...]
    moved: tuple[PerturbationResult, ...] = ()  # not measured of a champion beside a candidate
    champion: "Evaluation | None" = None
    difference: Difference | None = None  # to the champion
    reload_difference: float | None = None  # largest, of a validation probability, to those of the training process
    champion_problem: str = ""  # one sentence where the champion could not be evaluated
    beside: str | None = None  # name of the champion at that time, evaluated or not
    files: dict[str, str] = {}  # name -> SHA-256, of files of the candidate's folder that it goes with


class SheetImage(Record):
    """A test image on a contact sheet."""

    sha256: str
    label: str
    predicted: str
    probability: float  # of the predicted class
    outside: float  # share of the attention outside the central chest region; NaN where there was none


class Explanation(StoredRecord):
    """Where a model looked on the test images of a dataset."""

    model: str
    artefact_sha256: str
    dataset: int
    dataset_sha256: str
    outside: dict[str, float]  # label -> mean share of the attention outside the central chest region; NaN: no image
    evenly: float  # that share of attention that is spread evenly over the frame
    shown: tuple[SheetImage, ...]  # on the sheets, in their order
    sheets: dict[str, str]  # label -> SHA-256 of its contact sheet, a PNG


class Prediction(Record):
    """What a model says of one image; not a diagnosis."""

    file: str  # "" where bytes were handed in
    model: str
    predicted: str | None  # label at the model's operating point; None where the image was refused
    confidence: float | None  # calibrated probability of that label; below a half where a miss would be worse
    probabilities: dict[str, float] | None  # label -> calibrated, 0 to 1; None where the image was refused
    unlikeness: float | None  # distance to the training images by the limit; None: not measured
    refused: tuple[str, ...] = ()  # codes; unlike_training where unlikeness is above 1
    overlay: str | None = None  # file in which Grad-CAM lies over the picture


class LabelIssue(Record):
    """A label that a model contradicts."""

    sha256: str
    batch: str
    file: str
    image: str  # key in the store
    label: str
    probability: float  # of the label, by the model
    suggested: str  # the class that the model thinks most likely
    suggested_probability: float
    split: str
    issue: bool  # whether confident learning takes it for mislabelled


class LabelReview(Record):
    """The labels of a dataset that a model contradicts; printed, never stored."""

    dataset: int
    model: str
    looked_at: int  # images
    said: str  # which images were looked at, in a sentence
    doubts: tuple[LabelIssue, ...]  # least believed first


Operator = Literal["≥", "≤", ">"]
CheckKind = Literal[
    "share",  # of images, 0 to 1; read as a percentage
    "score",  # a figure that is read as it is, such as macro F1
    "images",  # a number of images
    "difference",  # candidate less champion: `observed` is the lower end of its interval
    "champion_score",  # a score whose limit is the champion's
    "condition",  # something that must be so; no figure and no limit, but `expected`
]


class Check(Record):
    """One check of the gate: `observed` `operator` `limit`. `formatting` turns these values into words."""

    name: str  # e.g. "recall COVID19"
    kind: CheckKind
    observed: float | None  # None where it could not be evaluated; of a condition 1 or 0
    operator: Operator | None = None
    limit: float | None = None
    expected: str = ""  # of a condition, e.g. "the recorded files"
    passed: bool
    reason: str  # one sentence
    interval: tuple[float, float] | None = None  # 95 %, where there is one


class Decision(StoredRecord):
    """The gate's answer for one run."""

    run: str
    model: str  # the candidate chosen on validation
    dataset: int
    champion: str | None  # model that the candidate met; None for the first
    candidates: tuple[str, ...]
    promote: bool
    checks: tuple[Check, ...]
    reason: str  # one sentence
    overrides: dict[str, str] = {}  # settings changed in the form for this run
    by: str = ""  # who started the run, and changed them
    evaluation_sha256: dict[
        str, str
    ] = {}  # candidate -> of its stored evaluation; of one that is not here nothing holds


class Champion(StoredRecord):
    """The pointer `registry/champion.json`."""

    version: int  # counts promotions and rollbacks, from 1
    model: str
    artefact_sha256: str
    history: int  # number of the entry that put it here


class HistoryEntry(StoredRecord):
    """One line of `registry/history/`: what was promoted, rolled back, refused or swept, by whom and why."""

    number: int
    action: str  # promoted, refused, rolled_back or swept (its weights were given up)
    model: str
    previous: str | None  # champion before
    version: int | None  # champion version that this entry makes; None when refused or swept
    by: str
    why: str
    at: str  # ISO 8601, UTC
    run: str
    decision: Decision | None = None


class Run(StoredRecord):
    """Everything the report of one run is made from; stored as `reports/<run>/run.json`."""

    run: str
    outcome: str  # promoted, refused or nothing_new
    batches: tuple[Batch, ...]
    dataset: Dataset | None
    models: tuple[Model, ...]
    evaluations: tuple[Evaluation, ...]  # one per model, the champion's inside
    decision: Decision | None
    champion: Champion | None  # after the run
    rulings: tuple[Ruling, ...] = ()  # of humans, that this dataset honours and its parent did not
    seconds: dict[str, float] = {}  # step -> wall time, of those that had ended before the report; {}: not known
    left_out: tuple[str, ...] = ()  # drops that were refused as a whole, without which the run went on


class FailedStep(StoredRecord):
    """A step of a run that failed, the last time it did; stored as `reports/<run>/failed/<step>.json`."""

    run: str  # as Airflow calls it
    step: str  # name of the task, with its number where it is one of several
    kind: str  # of the error; "" where nothing was raised
    said: tuple[str, ...]  # by the error, line by line
    advice: str  # what to do
    log_link: str  # "" where there is none
    at: str  # ISO 8601, UTC
    run_link: str = ""  # to the run in Airflow, "" where there is none


class Mailed(StoredRecord):
    """A mail that the mail server took for one address; stored as `reports/<run>/mailed/<kind>-<hash>.json`."""

    kind: str  # outcome of the run, or which step failed
    to: str
    at: str  # ISO 8601, UTC


class Unsent(StoredRecord):
    """A mail that could not be sent, the last time it was tried; stored as `reports/<run>/unsent/<kind>.json`."""

    kind: str
    to: tuple[str, ...]  # who did not get it
    why: str
    at: str  # ISO 8601, UTC


class StepProgress(Record):
    """How far a step has come that goes on; for whoever looks on, and never stored with what the step makes."""

    at: str  # ISO 8601, UTC
    unit: str = ""  # what is counted: files, images, epochs
    done: int = 0
    total: int = 0  # 0: not known
    stage: str = ""  # part of the step: inputs, features, head, fine_tune, or in words
    within: tuple[int, int] | None = None  # of the epoch that goes on: steps done, and in all
    val_macro_f1: float | None = None  # after the last epoch
    seconds_left: float | None = None  # of the stage: of epochs at most, else by the pace so far
