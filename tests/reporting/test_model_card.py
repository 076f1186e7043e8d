"""The card of a model: everything an auditor asks, written once, and no name in it is taken for Markdown."""

import re
from itertools import pairwise

import pytest
import report_samples as samples
import store_samples as stored
from markdown_it import MarkdownIt

from cxr_ml.errors import Refused
from cxr_ml.registry import promotion
from cxr_ml.reporting import formatting, publish
from cxr_ml.store import ObjectStore

pytestmark = pytest.mark.usefixtures("blank_plots")


def published(settings, run, name, batches=("b1",)):
    publish.publish_report(ObjectStore(settings.store), settings, run, batches)
    return ObjectStore(settings.store).get(f"models/{name}/card.md").decode()


def table(text, heading):
    """The tables below a heading, as rows of cells."""
    part = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return [[c.strip() for c in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("|")]


@pytest.fixture
def house(settings):
    parent = stored.put_dataset(settings, 1)
    data = stored.put_dataset(settings, 2, 3, parent)
    stored.put_model(settings, "first", data)
    stored.run(settings, "run-1", ["first"])
    return settings, data


def test_a_card_tells_use_data_training_metrics_decision_and_lineage(house):
    settings, data = house
    text = published(settings, "run-1", "first", ("b2",))
    assert text.startswith("# first\n")
    (entry,) = promotion.history(ObjectStore(settings.store))
    assert f"**Promoted** as champion v1 in the run run-1, {entry.at}, by ann." in text
    assert "**It must not be used** to diagnose" in text
    assert ["test", "3", "3", "3", "9"] in table(text, "Data")
    assert ["armiro \\[adults\\]", "COVID19", "3"] in table(text, "Data")
    why = samples.batch().rejected_classes["TUBERCULOSIS"].replace("_", "\\_")
    assert ["drop-1", "the class TUBERCULOSIS", why] in table(text, "Data")
    training = table(text, "Training")
    assert ["epochs, head", "12, in 3 min 4 s"] in training and ["seed", "0"] in training
    assert ["cpu", "Some Processor \\<7\\>"] in training
    metrics = samples.metrics(stored.BEST)
    rows = {row[0]: row[1:] for row in table(text, "Metrics")}
    low, high = metrics.intervals["recall COVID19"]
    assert rows["recall COVID19"] == [f"{89 / 90:.4f}", f"{low:.3f} – {high:.3f}", ""]
    assert rows["AUC NORMAL"][0] == f"{metrics.classes['NORMAL'].auc:.4f}" and rows["source one"][0] == "263"
    assert rows["source a rare one"] == ["7", "", "", "", "", "7 images are too few to judge by."]
    assert rows["macro F1"][0] == f"{metrics.macro_f1:.4f}" and rows["accuracy"][0] == f"{265 / 270:.4f}"
    assert rows["NORMAL"] == ["88", "1", "1", "90"]
    robust = [row[0] for row in table(text, "Robustness")]
    assert "shrunk to 7/8, JPEG 75, enlarged again" in robust and "lungs hidden" in robust
    assert "temperature 1.31" in text and "PNEUMONIA 0.35" in text
    decided = {row[0]: row[1:5] for row in table(text, "Decision")}
    assert {name.replace("\\", "") for name in decided} >= {c.name for c in entry.decision.checks}
    assert decided["recall COVID19"] == ["0.9889", f"{low:.3f} – {high:.3f}", "≥ 0.95", "yes"]
    lineage = text.partition("## Lineage\n")[2]
    assert re.findall(r"dataset (\d), manifest SHA-256 (\w{64})", lineage)[0] == ("2", data.manifest_sha256)
    assert re.findall(r"dataset (\d)|batch (\w+), of the drop ([\w-]+)", lineage) == [
        ("2", "", ""), ("", "b2", "drop-2"), ("1", "", ""), ("", "b1", "drop-1"),
    ]  # fmt: skip


def test_the_champion_stands_beside_the_candidate_and_a_refusal_and_who_was_not_chosen_say_so(house):
    settings, data = house
    beside = stored.evaluate("first", data)
    poor = ((60, 20, 10), (10, 70, 10), (5, 5, 80))
    stored.put_model(settings, "poor", data, samples.POOR, beside)
    stored.put_model(settings, "poorer", data, poor, beside)
    stored.run(settings, "run-2", ["poor", "poorer"])
    text = published(settings, "run-2", "poor")
    assert "**Refused** in the run run-2" in text
    rows = {row[0]: row[1:] for row in reversed(table(text, "Metrics"))}  # of names twice the first
    assert rows["figure"][2] == "first" and rows["recall NORMAL"][2] == f"{88 / 90:.4f}"
    assert "NO" in {row[4] for row in table(text, "Decision")}
    assert "by the\nchampion alone 4 images: McNemar's p = 0.27" in text
    other = ObjectStore(settings.store).get("models/poorer/card.md").decode()
    assert "**Not chosen**: poor did better on the validation images" in other
    assert "These checks are those of poor" in other


def test_a_card_is_written_once_and_is_the_same_for_the_same_run(house):
    settings, _ = house
    text = published(settings, "run-1", "first")
    ObjectStore(settings.store).remove("models/first/card.md")
    assert published(settings, "run-1", "first") == text
    ObjectStore(settings.store).remove("models/first/card.md")
    ObjectStore(settings.store).put_if_absent("models/first/card.md", b"the card of an earlier run")
    assert published(settings, "run-1", "first") == "the card of an earlier run"
    assert ObjectStore(settings.store).get("models/first/card-run-1.md").decode() == text


def test_a_card_is_not_written_on_a_dataset_that_was_changed(house):
    settings, _ = house
    ObjectStore(settings.store).remove("datasets/2/manifest.parquet")
    ObjectStore(settings.store).put_if_absent("datasets/2/manifest.parquet", b"another")
    with pytest.raises(Refused, match="was changed after dataset 2 was written"):
        published(settings, "run-1", "first")
    assert not ObjectStore(settings.store).exists("models/first/card.md")


HOSTILE = (
    "[click](javascript:alert(1))", "![x](http://evil.example/p.png)", "<script>alert(1)</script>", "a | b", "`x`",
    "**bold** _it_", "# head", "- item", "1. item", "a\n\n# head", "http://evil.example", "www.evil.example",
    "&lt;b&gt;", "\\[x\\](y)", "~~gone~~", "<http://evil.example>", "> quote", "a\u202eb", "= x",
)  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_shows_a_hostile_name_as_it_is(name):
    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    shown = (
        f"| {formatting.markdown(name)} | b |\n|-|-|\n\n{formatting.markdown(name)}\n\n* {formatting.markdown(name)}\n"
    )
    tokens = reader.parse(shown)
    kinds = [t.type for t in tokens]
    assert kinds == [t.type for t in reader.parse("| a | b |\n|-|-|\n\na\n\n* a\n")]
    texts = [t for t in tokens if t.type == "inline"]
    for inline in (texts[0], *texts[2:]):
        assert {child.type for child in inline.children} <= {"text", "text_special"}
        assert "".join(child.content for child in inline.children) == formatting.plain(name).strip()
    assert not re.search(r"https?://|www\.", formatting.markdown(name)), "GitHub would make a link of it"


def test_names_from_outside_do_not_change_the_card(settings):
    data = stored.put_dataset(settings)
    stored.put_model(settings, "first", data, weights="x | y\n# Approved <b>", code="[z](http://evil.example)")
    stored.run(settings, "run-1", ["first"], by="**root** | x")
    text = published(settings, "run-1", "first")
    assert "by \\*\\*root\\*\\* \\| x." in text
    assert ["first weights", "x \\"] in [row[:2] for row in table(text, "Training")]
    blocks = MarkdownIt("commonmark").enable("table").parse(text)
    kinds = {t.type for b in blocks for t in [b, *(b.children or ())]}
    assert not kinds & {"link_open", "image", "html_inline", "html_block", "code_inline"}
    headings = [b.content for a, b in pairwise(blocks) if a.type == "heading_open"]
    assert headings[0] == "first" and len(headings) == 9
