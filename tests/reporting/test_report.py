"""The report: one page that opens from disk, says what happened, and is written once."""

import base64
import math
import re
from html.parser import HTMLParser

import chromium
import pytest
import report_samples as samples

from cxr_ml.errors import Refused
from cxr_ml.records import Check, Failure, Probe, Ruling, Run, Unsent
from cxr_ml.reporting import formatting, narrative, report
from cxr_ml.reporting.examples import Example, Refusal
from cxr_ml.reporting.report import ReportContext
from cxr_ml.settings import Settings
from cxr_ml.store import ObjectStore

pytestmark = pytest.mark.usefixtures("blank_plots")

SETTINGS = Settings(mail={"ui_url": ""})
EVIL = "<script>alert('x')</script>"


class Page(HTMLParser):
    """Tags with their attributes, and the text that a reader sees."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(html)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] not in {"style", "script"}:
            self.words.append(data)


def read(run: Run, settings=SETTINGS, histories=None, documents=None) -> Page:
    histories = samples.histories(run) if histories is None else histories
    return Page(report.render(run, settings, ReportContext(histories, documents or {})))


def test_the_first_screen_says_promoted_with_version_recalls_floors_and_champion():
    first = read(samples.run()).text.split("Gate checks")[0]
    assert "PROMOTED inception_v3 · version 12 Every check passed." in first
    assert "recall COVID19 97.8 % 92.3 – 99.4 % 95 % ✓ met 90.0 %" in first
    assert re.search(r"macro F1 0\.94 0\.916 – 0\.969 0\.85 ✓ met 0\.90", first)
    assert narrative.NOTE in first


def test_where_the_candidate_looked_is_shown_with_its_share_outside_the_chest():
    run = samples.run()
    sheets = {"NORMAL": b"png one", "COVID19": b"png two", EVIL: b"png three"}
    context = ReportContext(explanation=samples.explanation(run.decision.model), sheets=sheets)
    page = Page(report.render(run, SETTINGS, context))
    part = page.text.split("Where the candidate looked")[1].split("Loss curves")[0]
    assert "NORMAL 21.0 %" in part and "COVID19 48.0 %" in part and "spread evenly, for comparison 36.0 %" in part
    sources = [facts.get("src", "") for tag, facts in page.tags if tag == "img"]
    assert ("data:image/png;base64," + base64.b64encode(b"png two").decode()) in sources
    assert "script" not in {tag for tag, _ in page.tags}


def test_a_run_whose_candidate_was_not_explained_says_so():
    assert "No candidate was explained in this run." in read(samples.run()).text


def test_the_first_screen_says_refused_and_which_floor_was_missed():
    first = read(samples.run(test=samples.POOR, champion=samples.GOOD)).text.split("Gate checks")[0]
    assert "REFUSED inception_v3 Recall of COVID19 is below its floor" in first
    assert "recall COVID19 90.0 % 82.1 – 94.6 % 95 % ✗ not met 97.8 %" in first


def test_a_promise_without_approval_is_not_shown_as_a_failed_gate():
    text = read(samples.run(outcome="refused")).text
    assert "REFUSED" in text and "The gate let the candidate pass, but it was not promoted" in text
    assert "version 12 The gate" not in text


def test_gate_checks_show_observed_limit_result_and_reason():
    text = read(samples.run(test=samples.POOR)).text
    assert "3 of 4 checks passed." in text
    assert "recall COVID19 COVID19: too many are missed. ✗ failed 0.9000 ≥ 0.95" in text
    assert "macro F1 All classes alike. ✓ passed" in text


def test_the_choice_between_candidates_is_explained_by_validation():
    text = read(samples.run()).text
    assert "inception_v3 had the highest macro F1 on the validation images: 0.9443, the next 0.9000." in text
    assert "inception_v3 (chosen)" in text and "resnet101_v2 (champion)" in text


def test_intervals_the_operating_point_slices_and_hidden_lungs_are_shown():
    text = read(samples.run()).text
    assert "NORMAL 92.2 % 84.8 – 96.2 % 97.2 %" in text
    assert "PNEUMONIA preferred by a factor of 1.42" in text and "temperature 1.31" in text
    assert "With the lungs blacked out it names the class with 40.0 % balanced accuracy" in text
    assert "lungs hidden 40.0 % 40.0 % 40.0 % 56.0 %" in text and "Shortcut:" not in text
    assert "source a rare one 7 images are too few to judge by." in text
    assert "recall COVID19 +0.078 +0.039 … +0.117" in text and "McNemar’s p = 0.270" in text


def hidden(value):
    made = samples.run()
    changed = tuple(e.model_copy(update={"moved": samples.moved(hidden=value)}) for e in made.evaluations)
    return read(made.model_copy(update={"evaluations": changed})).text


def test_a_model_that_still_names_the_class_with_the_lungs_hidden_is_told_so():
    assert "Shortcut: With the lungs blacked out" in hidden(0.7) and "not know from the lungs" in hidden(0.7)
    assert "more than the limit of 80.0 %: it reads the frame, not the lungs." in hidden(0.9)


def test_an_evaluation_of_an_earlier_version_is_shown_without_what_it_lacks():
    made = samples.run()
    bare = {"moved": (), "slices": (), "difference": None, "plain": None}
    old = tuple(e.model_copy(update=bare) for e in made.evaluations)
    text = read(made.model_copy(update={"evaluations": old})).text
    assert "inception_v3 on the test images" in text
    for title in ("Does it read the lungs?", "Beside the champion", "have in common", "The line between classes"):
        assert title not in text


def test_the_test_images_in_disguise_stand_below_those_as_they_are_with_the_champion_beside():
    made = samples.run()
    text = read(made).text
    assert "inception_v3 in disguise" in text
    for said in ("as they are", "shrunk to 7/8, JPEG 75", "sharpened (unsharp mask, 150 %)", "Champion’s macro F1"):
        assert said in text
    by_an_earlier_version = [e.model_copy(update={"robustness": {}}) for e in made.evaluations]
    assert "in disguise" not in read(made.model_copy(update={"evaluations": tuple(by_an_earlier_version)})).text


def test_nan_is_not_evaluated_and_never_a_zero_or_a_pass():
    run = samples.run(test=((90, 0, 0), (0, 0, 0), (0, 0, 90)), champion=None)
    assert math.isnan(run.evaluations[0].test.classes["COVID19"].recall)
    text = read(run).text
    assert "recall COVID19 not evaluated 95 % ✗ not evaluated none yet" in text
    assert "macro F1 not evaluated 0.85 ✗ not evaluated" in text
    assert "nan" not in text.lower().replace("finance", "")


def test_a_class_with_a_floor_that_the_model_does_not_know_is_shown_as_not_evaluated():
    settings = Settings(gate={"recall_floors": {"TUBERCULOSIS": 0.9, "COVID19": 0.95}})
    assert "recall TUBERCULOSIS not evaluated 90 % ✗ not evaluated" in read(samples.run(), settings).text


def test_a_first_model_has_no_champion_beside_it():
    text = read(samples.run(champion=None)).text
    assert "95 % ✓ met none yet" in text


def test_a_champion_that_was_not_evaluated_is_said_to_be_so():
    run = samples.run()
    alone = tuple(e.model_copy(update={"champion": None}) for e in run.evaluations)
    assert "95 % ✓ met not evaluated" in read(run.model_copy(update={"evaluations": alone})).text


def test_a_run_with_nothing_new_has_a_whole_page():
    run = Run(
        run="manual__1", outcome="nothing_new", batches=(), dataset=None, models=(), evaluations=(), decision=None,
        champion=None,
    )  # fmt: skip
    text = read(run).text
    assert "NOTHING NEW The inbox brought no new image" in text
    assert "no champion yet" in text and "The gate was not asked in this run." in text
    assert "Nothing was trained in this run." in text and "No dataset was built" in text


def test_a_dataset_that_may_not_be_trained_on_gives_the_reason():
    failure = Failure(suite="dataset", expectation="expect_x", column="smallest class", limit="≥ 100", observed="12")
    run = samples.run(
        batches=(samples.batch(failures=(failure,)),), models=(), evaluations=(), decision=None, outcome="refused"
    )
    assert "smallest class should be ≥ 100, and is 12." in read(run).text.split("Gate checks")[0]


def test_batches_show_verdicts_per_class_reasons_and_rejected_classes():
    text = read(samples.run()).text
    assert "COVID19 305 7 0 0 312" in text and "unknown 0 2 0 0 2" in text
    assert "all 914 13 120 12 1059" in text
    assert "Class TUBERCULOSIS rejected: artefact_rate is 0.92" in text
    assert "white_box 120 black_border 5" in text


def test_lineage_names_dataset_parent_hashes_weights_settings_and_durations():
    text = read(samples.run()).text
    assert "12 epochs in 3 min 4 s, 5012.3 images/s; fine-tune: 6 epochs in 23 min 23 s, 41.5 images/s" in text
    assert "commit 0123abc+changes" in text and "keras 3.15.1, tensorflow 2.21.0" in text
    assert "cores: 2; cpu: Some Processor <7>; gpus: none; memory gib: 24" in re.sub(r"\s+", " ", text)
    assert "3, grown from dataset 2" in text and "d" * 64 in text and "a" * 64 in text and "e" * 64 in text
    assert "head_learning_rate = 0.001" in text


def test_the_page_needs_no_network():
    documents = {"Data Docs": "data-docs/images.html"}
    page = read(samples.run(), Settings(mail={"ui_url": "https://airflow.example"}), documents=documents)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    sources = [attributes["src"] for _, attributes in page.tags if "src" in attributes]
    assert len(sources) == 8 and all(s.startswith("data:image/png;base64,") for s in sources)
    links = {attributes["href"] for tag, attributes in page.tags if tag == "a"}
    assert {link for link in links if not link.startswith(("#", "https://airflow.example"))} == {
        "data-docs/images.html"
    }
    places = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {link for link in links if link.startswith("#")} == {f"#{place}" for place in places}
    html = report.render(samples.run(), SETTINGS)
    assert "@import" not in html and "url(" not in html


def test_a_missing_history_is_said_to_be_missing():
    page = read(samples.run(), histories={})
    assert any(a.get("alt", "").startswith("Loss and score") for _, a in page.tags)


@pytest.mark.filterwarnings("ignore:Glyph")
def test_hostile_names_arrive_harmless():
    classes = (EVIL, "COVID19", '"><img src=x onerror=alert(1)>')
    counts = ((9, 0, 1), (0, 9, 1), (1, 0, 9))
    bad = samples.batch(
        drop=f"x\r\ny\u202e{EVIL}", counts={EVIL: {EVIL: 3}, "accepted": {"\ud800": 1}}, reasons={EVIL: 1},
        rejected_classes={EVIL: EVIL},
    )  # fmt: skip
    run = samples.run(test=counts, champion=counts, classes=classes, batches=(bad,))
    decision = run.decision.model_copy(
        update={
            "reason": EVIL,
            "overrides": {EVIL: EVIL},
            "checks": (Check(name=EVIL, kind="condition", observed=None, expected=EVIL, passed=False, reason=EVIL),),
        }
    )
    html = report.render(
        run.model_copy(update={"decision": decision}), SETTINGS, ReportContext(documents={EVIL: f"a/{EVIL}"})
    )
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert EVIL in page.text, "the name is shown as it is"
    assert "\u202e" not in html
    html.encode()


@pytest.mark.parametrize("link", ["javascript:alert(1)", "data:text/html,x", "JaVaScRiPt:x", "java\nscript:x"])
def test_a_link_that_could_run_something_is_refused(link):
    with pytest.raises(Refused, match="relative, http or https"):
        report.render(samples.run(), SETTINGS, ReportContext(documents={"docs": link}))


@pytest.mark.parametrize(
    ("check", "said"),
    [
        (("recall COVID19", "share", 0.91, "≥", 0.95), "recall COVID19 91.0 % below 95 %"),
        (("recall COVID19", "share", 0.9499, "≥", 0.95), "recall COVID19 94.99 % below 95 %"),
        (("recall COVID19", "share", math.nan, "≥", 0.95), "recall COVID19 not evaluated"),
        (("recall COVID19", "share", None, "≥", 0.95), "recall COVID19 not evaluated"),
        (("recall COVID19", "share", None, "≥", math.nan), "recall COVID19: Because."),
        (("test images COVID19", "images", 12.0, "≥", 30), "test images COVID19 12 below 30 images"),
        (("lungs hidden", "score", 0.9, "≤", 0.8), "lungs hidden 0.9000 above 0.8"),
        (("macro F1", "champion_score", 0.943, ">", 0.94321), "macro F1 0.9430 not above 0.943"),
        (
            ("recall COVID19 against champion", "difference", -0.1, "≥", -0.05),
            "recall COVID19 against champion: Because.",
        ),
        (("champion", "condition", None, None, None), "champion: Because."),
    ],
)
def test_a_failed_check_is_told_in_a_few_words(check, said):
    values = dict(zip(("name", "kind", "observed", "operator", "limit"), check, strict=True))
    assert narrative.complaint(Check(**values, passed=False, reason="Because.")) == said


@pytest.mark.parametrize(
    ("check", "said"),
    [
        ({"kind": "share", "operator": "≥", "limit": 0.95}, "≥ 0.95"),
        ({"kind": "images", "operator": "≥", "limit": 30}, "≥ 30 images"),
        ({"kind": "score", "operator": "≤", "limit": 0.001}, "≤ 0.001"),
        ({"kind": "difference", "operator": "≥", "limit": -0.05}, "≥ -0.05"),
        ({"kind": "champion_score", "operator": ">", "limit": 0.9}, "> 0.900"),
        ({"kind": "condition", "expected": "the recorded files"}, "the recorded files"),
    ],
)
def test_the_limit_of_a_check_is_put_into_words(check, said):
    assert formatting.check_limit(Check(name="c", observed=None, passed=False, reason="", **check)) == said


def test_failed_checks_are_on_the_first_screen_and_further_ones_a_click_away():
    run = samples.run(test=samples.POOR)
    first = read(run).text.split("Gate checks")[0]
    assert "✗ recall COVID19 90.0 % below 95 %" in first
    assert "below 95 % COVID19: too many are missed." not in first, "the same once more in other words"
    checks = tuple(samples.check(f"c{n}", 0.1, 0.5, reason="Because.") for n in range(9))
    many = run.model_copy(update={"decision": run.decision.model_copy(update={"checks": checks})})
    page = read(many)
    first = page.text.split("Gate checks")[0]
    assert "c2 0.1000 below 0.5" in first and "c3" not in first and "and 6 more" in first


def test_the_page_leads_to_console_and_airflow():
    run = samples.run()
    context = ReportContext(run_link="https://airflow.example/dags/cxr_retraining/runs/x%2B1")
    settings = Settings(mail={"ui_url": "https://airflow.example/"})
    page = Page(report.render(run, settings, context))
    links = {facts["href"] for tag, facts in page.tags if tag == "a"}
    for path in (
        "/dags/cxr_retraining/runs/x%2B1", "/cxr/quarantine", "/cxr/models/inception_v3-d3-1a2b3c4d",
        "/cxr/runs/scheduled__2026-01-12T03%3A00%3A00%2B00%3A00",
    ):  # fmt: skip
        assert f"https://airflow.example{path}" in links


def test_an_address_of_the_ui_that_could_run_something_is_refused():
    with pytest.raises(Refused, match="relative, http or https"):
        report.render(samples.run(), Settings(mail={"ui_url": "javascript:alert(1)//"}))


def test_growth_is_shown_from_the_second_version_on():
    run = samples.run()
    older = run.dataset.model_copy(update={"dataset": 2, "parent": None})
    for versions, said in (
        ((run.dataset,), "no growth to show yet"),
        ((run.dataset, older), "Growth over the versions"),
    ):
        text = Page(report.render(run, SETTINGS, ReportContext(versions=versions))).text
        assert said in text


def test_how_long_each_step_took_is_shown_and_so_is_that_it_is_not_known():
    text = read(samples.run(seconds={"data.ingest [0]": 31.0, "learn.evaluate": 141.8})).text
    assert "data.ingest [0] 31 s learn.evaluate 2 min 22 s all steps, one after the other 2 min 53 s" in text
    assert "The steps of this run were not timed." in read(samples.run()).text


def test_examples_of_refused_files_stand_under_their_reason_harmless():
    examples = [Example(f"x/{EVIL}.png", "NORMAL", b"thumb"), Example("x/broken.png", "", b"")]
    refusals = [Refusal("white_box", "white_box is 0.3, expected ≤ 0.005.", 120, examples), Refusal("none", "", 3, [])]
    page = Page(report.render(samples.run(), SETTINGS, ReportContext(refusals=refusals)))
    assert "white_box 2 of 120 files The first: white_box is 0.3" in page.text
    assert f"NORMAL x/{EVIL}.png no picture no label x/broken.png" in page.text
    assert "script" not in {tag for tag, _ in page.tags}
    sources = [facts.get("src", "") for tag, facts in page.tags if tag == "img"]
    assert "data:image/jpeg;base64," + base64.b64encode(b"thumb").decode() in sources


def test_a_drop_of_which_nothing_was_new_says_what_became_of_its_files():
    counts = {"duplicate": {"NORMAL": 30}, "quarantined": {"COVID19": 3}}
    run = samples.run(
        outcome="nothing_new", batches=(samples.batch(counts=counts),), dataset=None, models=(), evaluations=(),
        decision=None,
    )  # fmt: skip
    assert "NOTHING NEW None of the 33 files that came in was new and fit to train on" in read(run).text


def test_mails_that_could_not_be_sent_are_on_the_first_screen():
    unsent = [Unsent(kind="promoted", to=(EVIL, "b@c"), why=f"No {EVIL}\n", at="2026-01-12T04:00:00+00:00")] * 2
    html = report.render(samples.run(), SETTINGS, ReportContext(unsent=unsent))
    first = Page(html).text.split("Gate checks")[0]
    sentence = f"No mail about this run could be sent to {EVIL}, b@c (2026-01-12T04:00:00+00:00). No {EVIL}"
    assert f"Warning: {sentence} {sentence}" in first
    assert EVIL not in html
    assert "Warning:" not in report.render(samples.run(), SETTINGS)


LONG = tuple(f"A CLASS WITH A VERY LONG NAME {n}" for n in range(12))
MANY = tuple(tuple(80 if t == p else (t * p) % 7 for p in range(12)) for t in range(12))


def with_plots(run):
    """The page of a run, with long names of files, and with what takes longest to draw."""
    files = [Example(f"{'long' * 60}.png", "x" * 60, b"")]
    refusals = [Refusal("white_box", "", 4, files)]
    context = ReportContext(samples.histories(run), {"Data Docs": "x.html"}, refusals=refusals)
    return report.render(run, SETTINGS, context)


@pytest.fixture(scope="module")
def page_with_plots():
    """Drawn before any plot is left blank."""
    return with_plots(samples.run())


@pytest.mark.slow
@pytest.mark.plots
def test_the_same_run_gives_the_same_bytes(page_with_plots):
    assert with_plots(samples.run()) == page_with_plots


@pytest.mark.slow
@pytest.mark.plots
def test_no_width_makes_the_page_wider_than_its_window(page_with_plots):
    twelve = with_plots(samples.run(test=MANY, champion=MANY, classes=LONG))
    pages = {"three classes": page_with_plots, "twelve": twelve}
    assert chromium.wider_than(pages, 390, 1280) == []


@pytest.fixture
def bucket(settings):
    """An empty bucket, and in it a prefix."""
    return settings.replace(store={"prefix": "team/"})


def test_the_report_and_its_record_are_stored_once(bucket):
    run = samples.run(run="manual__2026-01-12T03:00:00+00:00")
    key = report.write(ObjectStore(bucket.store), bucket, run, ReportContext(samples.histories(run)))
    assert key == "reports/manual__2026-01-12T03:00:00+00:00/index.html"
    page = ObjectStore(bucket.store).get(key)
    assert b"PROMOTED" in page
    assert ObjectStore(bucket.store).load(key.replace("index.html", "run.json"), Run).to_bytes() == run.to_bytes()
    assert report.write(ObjectStore(bucket.store), bucket, run, ReportContext(samples.histories(run))) == key
    assert ObjectStore(bucket.store).get(key) == page


def test_a_report_with_nan_is_stored_and_read_back(bucket):
    run = samples.run(run="nan", test=((90, 0, 0), (0, 0, 0), (0, 0, 90)))
    report.write(ObjectStore(bucket.store), bucket, run)
    assert report.write(ObjectStore(bucket.store), bucket, run) == "reports/nan/index.html"
    assert math.isnan(ObjectStore(bucket.store).load("reports/nan/run.json", Run).evaluations[0].test.macro_f1)


def test_a_rollback_between_two_tries_does_not_change_the_report(bucket):
    run = samples.run(run="retried")
    key = report.write(ObjectStore(bucket.store), bucket, run)
    page = ObjectStore(bucket.store).get(key)
    later = run.champion.model_copy(update={"version": 13})
    assert report.write(ObjectStore(bucket.store), bucket, run.model_copy(update={"champion": later})) == key
    assert ObjectStore(bucket.store).get(key) == page


def test_a_stored_report_is_never_replaced_by_another_outcome(bucket):
    report.write(ObjectStore(bucket.store), bucket, samples.run(run="twice"))
    with pytest.raises(Refused, match="already stored with outcome 'promoted'"):
        report.write(ObjectStore(bucket.store), bucket, samples.run(run="twice", outcome="refused"))


@pytest.mark.parametrize("name", ["../champion", "a/b", "", "..", ".", "x" * 201, "a\nb", "a b"])
def test_a_run_id_that_could_leave_its_folder_is_refused_before_anything_is_written(bucket, name):
    before = list(ObjectStore(bucket.store).keys(""))
    with pytest.raises(Refused, match="run id"):
        report.write(ObjectStore(bucket.store), bucket, samples.run(run=name))
    assert list(ObjectStore(bucket.store).keys("")) == before


def with_probes(*accuracies, **changes) -> Run:
    probes = tuple(
        Probe(sees=sees, balanced_accuracy=a, chance=0.3333, images=935, limit=0.5, why="Too few." if a is None else "")
        for sees, a in zip(("border", "encoding"), accuracies, strict=True)
    )
    return samples.run(dataset=samples.dataset().model_copy(update={"shortcuts": probes, **changes}))


def test_shortcut_risk_is_said_in_plain_words_and_warned_of_above_the_limit():
    text = read(with_probes(0.8655, 0.44)).text
    told = "A probe that sees only the outer border tells the classes apart with 87 % balanced accuracy (chance 33 %)"
    assert f"Shortcut risk: {told}, on 935 images: class and source coincide in this data" in text
    assert "no evidence of diagnostic skill" in text
    assert "bytes) tells the classes apart with 44 % balanced accuracy (chance 33 %), on 935 images." in text
    assert text.count("Shortcut risk:") == 1


def test_a_probe_that_was_not_measured_says_so_and_why():
    text = read(with_probes(None, None)).text
    assert "Whether the outer border gives the class away was not measured. Too few." in text
    assert "Shortcut risk" not in text


def test_rulings_of_humans_are_shown_harmless_and_those_withheld_counted():
    ruling = Ruling(
        number=7, sha256="a" * 64, batch="b", file=EVIL, action="relabel", label="COVID19", by="dr.a", why="read again",
        at="2026-01-10T09:00:00+00:00", reasons=("conflicting_label",),
    )  # fmt: skip
    run = with_probes(0.4, 0.4, rulings=7, withheld=("a" * 64,)).model_copy(update={"rulings": (ruling,)})
    html = report.render(run, SETTINGS)
    text = Page(html).text
    assert "Rulings of humans, new in this dataset" in text and EVIL not in html
    assert "relabelled as COVID19 by dr.a: read again. Set aside: conflicting_label." in text
    assert "7 honoured; 1 images withheld" in text
    assert "Rulings of humans" not in read(samples.run()).text


def test_a_warning_and_a_class_that_is_not_trained_are_told_apart_from_what_was_refused():
    failures = [
        Failure(suite="classes", expectation="e", column="c", limit="≤ 1", observed="2", subject=s, severity=severity)
        for s, severity in (("NORMAL", "warning"), ("COVID19", "critical"))
    ]
    batch = samples.batch(failures=tuple(failures), untrained={"TUBERCULOSIS": 3})
    run = samples.run(batches=(batch,))
    html = report.render(run, SETTINGS, ReportContext(samples.histories(run)))
    assert "Warning only: classes, NORMAL: e" in html
    assert "Warning only: classes, COVID19" not in html and "classes, COVID19: e" in html
    assert "Class TUBERCULOSIS: known label, not trained (3 images accepted)." in html
