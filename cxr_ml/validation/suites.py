"""Reads Great Expectations suites and evaluates tables with them. What cannot be evaluated is refused, never passed."""

import gc
import html
import itertools
import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import great_expectations as gx
import pandas as pd
from great_expectations.core.expectation_validation_result import (
    ExpectationSuiteValidationResult,
    ExpectationValidationResult,
)
from great_expectations.data_context.types.base import ProgressBarsConfig
from great_expectations.exceptions import ExpectationNotFoundError, GreatExpectationsError
from great_expectations.expectations.expectation import (
    ColumnMapExpectation,
    ColumnPairMapExpectation,
    Expectation,
    MulticolumnMapExpectation,
)
from great_expectations.expectations.expectation_configuration import ExpectationConfiguration
from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
from great_expectations.render.view.view import DefaultJinjaPageView

from cxr_ml.errors import Refused
from cxr_ml.validation.limits import ABOUT_NULLS, ENTRY_KEYS, columns_of, describe_limit

_ROW_WISE = (ColumnMapExpectation, ColumnPairMapExpectation, MulticolumnMapExpectation)
_QUOTED = re.compile(r"\s*[-+]?[\d.]+(e[-+]?\d+)?\s*", re.IGNORECASE)
_NAMED_ROWS = 100  # tables of at most so many rows have their failing rows named in Data Docs
_LARGE = 10_000  # rows of a table that is worth a collection, which takes a third of a second


class Unmet(NamedTuple):
    """An expectation that a table does not meet."""

    expectation: str
    column: str  # several are joined by ", "
    reason: str  # meta.reason, else <expectation>:<column>
    limit: str  # e.g. "≤ 0.005"
    observed: str  # of the table as a whole, e.g. "3 of 1318 rows"
    rows: tuple[Any, ...]  # keys of the rows that do not meet it; empty where the table is judged as a whole
    critical: bool  # severity; "warning" and "info" are shown in Data Docs and have no consequence


class Suite(gx.ExpectationSuite):
    """A suite that knows where in its file each expectation is."""

    places: dict[str, str]  # by `_identity`: file, line and number, for refusals


def load_suite(folder: Path, name: str) -> Suite:
    """The suite `<folder>/<name>.json`, in Great Expectations' own JSON.

    Raises:
        Refused: no such file, broken JSON, a key given twice, an unknown expectation or argument; with file and line.
    """
    path = Path(folder) / f"{name}.json"
    try:
        data = path.read_bytes()
        text = data.decode()
        reject_duplicates, reject_constants = _make_json_hooks(text)
        found = json.loads(text, object_pairs_hook=reject_duplicates, parse_constant=reject_constants)
    except OSError as error:
        raise Refused(f"A Great Expectations suite was expected at {path}. Received: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise Refused(
            f"{path}, line {error.lineno}, column {error.colno}: JSON was expected. Received: {error.msg}. Correct it."
        ) from None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Refused(
            f"{path}, line {line}: JSON in UTF-8 was expected. Received: {error}. Correct the file."
        ) from None
    except RecursionError:
        raise Refused(f"{path}: a suite was expected. Received: JSON nested too deeply. Correct the file.") from None
    except ValueError as error:
        raise Refused(f"{path}: JSON was expected. Received: {error}. Correct the file.") from None
    entries = found.get("expectations") if isinstance(found, dict) else None
    if not isinstance(entries, list) or not entries or found.get("name") != name:
        raise Refused(
            f'{path}: a suite with "name": "{name}" and at least one entry in "expectations" was expected. '
            f"Received: {text[:200]!r}"
        )
    meta = found.get("meta") or {}
    if not isinstance(meta, dict):
        raise Refused(f'{path}: an object was expected under "meta". Received: {meta!r}')
    # GX's own loader only logs an entry that it cannot build, and goes on without it.
    places = [_locate(path, text, entries, i) for i in range(len(entries))]
    built = [_build(entry, where) for entry, where in zip(entries, places, strict=True)]
    suite = Suite(name=name, expectations=built, meta=meta)
    suite.places = dict(zip(map(_identity, (e.configuration for e in built)), places, strict=True))
    return suite


def reason_of(expectation: Expectation) -> str:
    """The code that a row gets for not meeting the expectation."""
    given = (expectation.meta or {}).get("reason")
    return given or f"{expectation.expectation_type}:{', '.join(columns_of(expectation.configuration.kwargs))}"


def evaluate(suite: Suite, table: pd.DataFrame, key: str, row_wise: bool) -> tuple[list[Unmet], str]:
    """Judges a table.

    Args:
        suite: as loaded.
        table: at least one row.
        key: column whose values name the rows, each once.
        row_wise: every expectation must judge single rows, so that it can be said which row fails.

    Returns:
        What is not met, in the order of the suite, and the Data Docs page (HTML without any remote part).

    Raises:
        Refused: an expectation could not be evaluated, or would let rows pass for want of a value.
    """
    found, validated = judged(suite, table, key, row_wise)
    if len(table) > _LARGE:
        gc.collect()  # GX's objects refer to one another, and to the table
    return found, _page(validated)


def judged(
    suite: Suite, table: pd.DataFrame, key: str, row_wise: bool
) -> tuple[list[Unmet], ExpectationSuiteValidationResult]:
    """As `evaluate`, without its page, which takes longer than the judging of a small table."""
    for expectation in suite.expectations:
        if row_wise and not isinstance(expectation, _ROW_WISE):
            raise Refused(
                f"{suite.places[_identity(expectation.configuration)]}: {suite.name}.json judges row by row, "
                f"and {expectation.expectation_type} judges a table as a whole. "
                "Take it out, or put one of the expect_column_values_… expectations in its place."
            )
    validated = _validate(suite, table, key)
    order = {_identity(e.configuration): i for i, e in enumerate(suite.expectations)}
    results = sorted(validated.results, key=lambda r: order[_identity(_configuration(r))])
    if len(results) != len(suite.expectations):
        raise Refused(f"{suite.name}.json has {len(suite.expectations)} expectations. Evaluated: {len(results)}")
    unmet = [_unmet(suite.places[_identity(_configuration(r))], r, len(table), key) for r in results]
    found = [u for u in unmet if u is not None]
    _refuse_nulls(suite.name, results, found, table, key)
    validated.results = results
    return found, validated


def _make_json_hooks(text: str) -> tuple[Callable[[list[tuple[str, Any]]], dict[str, Any]], Callable[[str], float]]:
    """For `json.loads` of the text: they reject a key given twice and a number such as NaN, with the line."""
    ended = itertools.count()  # objects are handed over in the order of their closing brackets

    def lines(token: str) -> list[int]:
        found = re.finditer(rf'"(?:[^"\\]|\\.)*"|({token})', text)
        return [text.count("\n", 0, m.start()) + 1 for m in found if m[1]]

    def reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        number, found = next(ended), dict(pairs)
        if len(found) != len(pairs):
            keys = [k for k, _ in pairs]
            twice = next(k for k in keys if keys.count(k) > 1)
            raise ValueError(f"the key {twice!r} twice in the object that ends in line {lines('}')[number]}")
        return found

    def reject_constants(name: str) -> float:
        raise ValueError(f"{name} in line {lines('NaN|-?Infinity')[0]}, which JSON does not have")

    return reject_duplicates, reject_constants


def _locate(path: Path, text: str, entries: list[Any], index: int) -> str:
    kind = entries[index].get("type") if isinstance(entries[index], dict) else None
    before = sum(isinstance(e, dict) and e.get("type") == kind for e in entries[:index])
    places = list(re.finditer(r'"type"\s*:\s*' + re.escape(json.dumps(kind)), text))
    line = f", line {text.count(chr(10), 0, places[before].start()) + 1}" if before < len(places) else ""
    return f"{path}{line}, expectation {index + 1}"


def _build(entry: object, where: str) -> Expectation:
    if not isinstance(entry, dict) or not isinstance(entry.get("type"), str):
        raise Refused(f'{where}: an object with "type" and "kwargs" was expected. Received: {entry!r}')
    if unknown := set(entry) - ENTRY_KEYS:
        raise Refused(f"{where}: only {sorted(ENTRY_KEYS)} can be used. Received: {sorted(unknown)}")
    meta = entry.get("meta") or {}
    if not isinstance(meta, dict) or not isinstance(meta.get("reason", ""), str):
        raise Refused(f'{where}: an object with a text as "reason" was expected under "meta". Received: {meta!r}')
    kwargs = entry.get("kwargs")
    for name in ("min_value", "max_value"):  # Great Expectations takes "3" for 3 in some places, and not in others
        if isinstance(kwargs, dict) and _QUOTED.fullmatch(str(kwargs.get(name))) and isinstance(kwargs[name], str):
            raise Refused(f"{where}: a number without quotes was expected as {name}. Received: {kwargs!r}")
    try:
        arguments: dict[str, Any] = {"kwargs": {}} | entry
        return ExpectationConfiguration(**arguments).to_domain_obj()
    except ExpectationNotFoundError:
        raise Refused(
            f"{where}: an expectation of Great Expectations {gx.__version__} was expected. "
            f"Received: {entry['type']!r}. See https://greatexpectations.io/expectations for their names."
        ) from None
    except (GreatExpectationsError, ValueError, TypeError) as error:
        raise Refused(
            f"{where}: {entry['type']} cannot be used so. Received: {entry.get('kwargs')!r}. {error}"
        ) from None


def _validate(suite: gx.ExpectationSuite, table: pd.DataFrame, key: str) -> ExpectationSuiteValidationResult:
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    context.enable_analytics(False)
    asset = context.data_sources.add_pandas("tables").add_dataframe_asset(suite.name)
    batch = asset.add_batch_definition_whole_dataframe("whole").get_batch({"dataframe": table})
    log = logging.getLogger("great_expectations")
    level = log.level
    log.setLevel(logging.CRITICAL)  # it logs, with a traceback, what is refused in one sentence below
    try:
        # Values beside the keys make the page of a few rows say which; of many rows they take longer than the judging.
        return batch.validate(
            suite,
            result_format={
                "result_format": "COMPLETE",
                "unexpected_index_column_names": [key],
                "return_unexpected_index_query": False,
                "exclude_unexpected_values": len(table) > _NAMED_ROWS,
            },
        )
    finally:
        log.setLevel(level)
        context.data_sources.delete("tables")  # GX keeps the last context, and with it the table


def _configuration(result: ExpectationValidationResult) -> ExpectationConfiguration:
    return cast(ExpectationConfiguration, result.expectation_config)  # GX leaves it out only where a rendering failed


def _identity(configuration: ExpectationConfiguration) -> str:
    kwargs = {k: v for k, v in configuration.kwargs.items() if k not in ("batch_id", "result_format")}
    return json.dumps([configuration.type, kwargs, configuration.meta], sort_keys=True, default=str)


def _unmet(where: str, result: ExpectationValidationResult, rows: int, key: str) -> Unmet | None:
    configuration, details = _configuration(result), result.result or {}
    columns = columns_of(configuration.kwargs)
    name = f"{configuration.type} on {', '.join(columns) or 'the table'}"
    if problem := next(_exceptions(result.exception_info or {}), None):
        raise Refused(
            f"{where}: {name} could not be evaluated. Received: {problem} "
            "Correct the expectation, or measure what it needs."
        )
    expectation = configuration.to_domain_obj()
    row_wise = isinstance(expectation, _ROW_WISE)
    if result.success not in (True, False) or (row_wise and details.get("element_count") is None):
        raise Refused(f"{where}: {name} gave no answer. Received: {result.success!r}, {details!r}")
    if result.success:
        return None
    named = [part[key] for part in details.get("unexpected_index_list") or ()]
    failing = tuple(itertools.chain.from_iterable(named)) if rows > _NAMED_ROWS else tuple(named)
    if row_wise and len(failing) != details["unexpected_count"]:
        raise Refused(
            f"{where}: {name} counts {details['unexpected_count']} failing rows and names {len(failing)}. "
            "Use an expectation that names the rows it finds."
        )
    return Unmet(
        expectation=configuration.type,
        column=", ".join(columns),
        reason=reason_of(expectation),
        limit=describe_limit(configuration.type, configuration.kwargs),
        observed=f"{len(failing)} of {rows} rows" if row_wise else str(details.get("observed_value")),
        rows=failing,
        critical=str(getattr(configuration.severity, "value", configuration.severity)) == "critical",
    )


def _exceptions(info: dict[str, Any]) -> Iterator[str]:
    # One dict for the expectation, or one for each metric that it needs.
    for part in [info] if "raised_exception" in info else info.values():
        if part.get("raised_exception"):
            yield str(part.get("exception_message"))


def _refuse_nulls(
    suite: str, results: list[ExpectationValidationResult], found: list[Unmet], table: pd.DataFrame, key: str
) -> None:
    # GX leaves rows without a value out of the count: with no value at all, every limit is met.
    stopped = {row for u in found if u.critical for row in u.rows}
    for result in results:
        configuration = _configuration(result)
        if configuration.type in ABOUT_NULLS or not (result.result or {}).get("missing_count"):
            continue
        columns = columns_of(configuration.kwargs)
        empty = set(table.loc[table[columns].isna().any(axis=1), key]) - stopped
        if empty:
            raise Refused(
                f"{suite}.json: {configuration.type} would let {len(empty)} rows without {', '.join(columns)} pass. "
                "Add expect_column_values_to_not_be_null for it, or a row_condition that leaves such rows out."
            )


def _escaped(value: Any) -> Any:  # noqa: ANN401 - JSON
    # GX's templates write cells as they are, and a label or a file name may hold a script.
    if isinstance(value, dict):
        return {k: _escaped(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(v) for v in value]
    return html.escape(value) if isinstance(value, str) else value


def _page(validated: ExpectationSuiteValidationResult) -> str:
    # Load times, fingerprints and random element ids would make two pages of the same data differ.
    for result in validated.results:
        result.result = _escaped(result.result)
    validated.meta = {"batch_kwargs": {"data_asset_name": validated.suite_name}}
    document = ValidationResultsPageRenderer(run_info_at_end=True).render(validated)
    document.sections = [section for section in document.sections if section.section_name != "Run Info"]
    view = DefaultJinjaPageView(custom_views_directory=str(Path(__file__).parent / "templates"))
    numbers = itertools.count()
    view.env.filters["generate_html_element_uuid"] = lambda prefix="": f"{prefix}{next(numbers)}"
    page = view.render(document, template="data_docs.j2")
    # GX links to pages of a site that is not built.
    return re.sub(r'<a href="(?:\.\./)+[^"]*"\s*>(.*?)</a>', r"\1", page)
