"""What the console's pages ask of the store: what never changes is read once, and only what is shown."""

import importlib

import pytest
import store_samples as made
from drop_samples import boxed, png, take
from report_samples import GOOD
from request_counter import counted

from cxr_ml.registry import promotion
from cxr_ml.store import ObjectStore
from cxr_ml.validation import add_ruling

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("handful")]

NOBODY = (None, None)  # request and user, which only the templates look at


@pytest.fixture
def asked(settings, monkeypatch):
    """What the console asks of the store from now on; its pages give their values instead of HTML."""
    from cxr_console import pages, scheduler, store_cache

    monkeypatch.setattr(pages, "render", lambda request, user, template, title, status=200, **values: values)
    for name, value in (("runs", []), ("steps", {}), ("waiting", []), ("schedule", None)):
        monkeypatch.setattr(scheduler, name, lambda *_, value=value: value)
    with counted(settings.store.endpoint_url) as (address, log):
        monkeypatch.setenv("CXR_STORE__ENDPOINT_URL", address)
        importlib.reload(store_cache)  # it remembers nothing of the last test's store
        yield log


def read(asked):
    """Keys of the objects that were read since the last time; not listings."""
    found = [line.partition(" ")[2] for line in asked if line.startswith("GET ") and line != "GET "]
    asked.clear()
    return found


@pytest.fixture
def models(store, settings):
    """Two champions, one after the other, with a card."""
    dataset = made.put_dataset(settings)
    first = made.evaluate("first", dataset, GOOD)
    for name, test, champion in (("first", GOOD, None), ("second", made.BEST, first)):
        made.put_model(settings, name, dataset, test, champion)
        store.put_if_absent(f"models/{name}/card.md", b"# Card\n")
        made.run(settings, f"run-{name}", [name])


def test_what_never_changes_is_read_once(models, asked):
    from cxr_console import data, decisions, overview
    from cxr_console import models as pages_of_models

    def visit():
        overview.overview(*NOBODY)
        pages_of_models.models(*NOBODY)
        pages_of_models.model(*NOBODY, "second")
        pages_of_models.compare(*NOBODY, ("first", "second"))
        data.data(*NOBODY)
        data.dataset(*NOBODY, 1)
        return decisions.rollback(*NOBODY)

    assert [row["model"] for row in visit()["earlier"]] == ["first"]
    first = read(asked)
    assert {"models/second/evaluation.json", "registry/history/00002.json"} <= set(first)
    visit()
    # The pointer may have moved, and the history may have one more entry.
    assert set(read(asked)) == {"registry/champion.json", "registry/history/00003.json"}


def test_a_new_entry_of_the_history_is_seen(models, asked, store):
    from cxr_console import decisions

    assert decisions.rollback(*NOBODY)["champion"].model == "second"
    promotion.rollback(store, "first", "ann", "the second one disappoints")
    found = decisions.rollback(*NOBODY)
    assert found["champion"].model == "first" and [row["model"] for row in found["earlier"]] == ["second"]


def test_the_wall_reads_only_tables_that_can_have_what_is_asked_for(settings, asked):
    from cxr_console import data, quarantine

    old = take(settings, "week-1", {"NORMAL/boxed.png": boxed(1), "NORMAL/a.png": png(1)}).batch
    new = take(settings, "week-2", {"NORMAL/page.png": b"<html>", "NORMAL/b.png": png(2)}).batch
    tables = {batch: f"batches/{batch}/refused.parquet" for batch in (old, new)}
    asked.clear()
    shown = quarantine.index(*NOBODY, reason="white_box")["rows"]
    assert [row[2]["file"] for row in shown] == ["NORMAL/boxed.png"]
    assert tables[old] in (first := read(asked)) and tables[new] not in first
    assert not any(key.endswith("measurements.parquet") for key in first)
    assert len(quarantine.index(*NOBODY)["rows"]) == 2
    assert tables[old] not in (first := read(asked)) and tables[new] in first
    quarantine.index(*NOBODY)
    quarantine.file(*NOBODY, old, 0)
    data.drop(*NOBODY, new)
    assert read(asked) == []


def test_pages_of_the_wall_are_cut_from_all_drops_in_their_order(settings, asked, monkeypatch):
    from cxr_console import quarantine

    files = {f"NORMAL/{n}.png": b"<html>" for n in range(5)} | {"COVID19/a.png": b"<html>", "NORMAL/x.png": png(1)}
    for week in (1, 2):
        take(settings, f"week-{week}", files | {"NORMAL/more.png": boxed(week)})
    monkeypatch.setattr(quarantine, "PAGE", 3)

    def walk(**asked_for):
        rows, page = [], 1
        while True:
            found = quarantine.index(*NOBODY, page=page, **asked_for)
            rows += [(batch, row["file"]) for batch, _, row, _ in found["rows"]]
            if not found["more"]:
                return rows
            page += 1

    everything = walk()
    assert len(everything) == len(set(everything)) == 15  # the second week's x.png is a copy of the first's
    for label, of in (("NORMAL", "NORMAL/"), ("COVID19", "COVID19/")):
        assert walk(label=label) == [row for row in everything if row[1].startswith(of)]
    assert walk(reason="white_box") == [row for row in everything if row[1] == "NORMAL/more.png"]
    assert len(walk(reason="not_an_image", label="NORMAL")) == 10


def test_a_ruling_reads_no_table_as_a_whole_and_none_twice(store, settings, asked):
    from cxr_console import store_cache

    batch = take(settings, "week-1", {"NORMAL/boxed.png": boxed(1), "NORMAL/more.png": boxed(2)}).batch
    table = f"batches/{batch}/measurements.parquet"

    def release(file):
        names, known = [f"{batch}/NORMAL/{file}"], store_cache.rulings()
        request = add_ruling.Request("release", "ann", "seen")
        made = add_ruling.rule_on_images(
            ObjectStore(store_cache.settings().store),
            store_cache.settings().inbox,
            store_cache.settings().classes,
            (),
            names,
            request,
            store_cache.named,
            known,
        )
        store_cache.add_rulings(made)
        return made

    asked.clear()
    assert release("boxed.png")[0].number == 1
    assert table in read(asked)
    assert release("more.png")[0].number == 2
    withdrawal = add_ruling.Request("withdraw", "ben", "a hand in the beam")
    add_ruling.rule_on_image(store, settings.inbox, settings.classes, (), f"{batch}/NORMAL/boxed.png", withdrawal)
    assert [r.by for r in store_cache.rulings()] == ["ann", "ann", "ben"]
    assert table not in read(asked) and len(store_cache.in_force()) == 2
