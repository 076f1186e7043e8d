"""A run as tables on a terminal."""

from rich.console import Console
from rich.table import Table

from cxr_ml.records import Batch, Check, Dataset, Decision, Evaluation, Run
from cxr_ml.reporting import formatting, narrative


def plain(value: object) -> str:
    """Text that rich prints as it is: names from outside must not be read as markup."""
    return str(value).replace("[", r"\[")


def show_run(run: Run, console: Console) -> None:
    """Prints what became of a run: batches, candidates, decision, version."""
    for batch in run.batches:
        show_batch(batch, console)
    for text in dataset_remarks(run.dataset):
        console.print(text, highlight=False)
    for ruling in run.rulings:
        console.print(plain(narrative.ruled(ruling)), highlight=False)
    if run.decision:
        console.print(candidates_table(run.evaluations))
        console.print(decision_table(run.decision))
    console.print(f"[bold]{narrative.outcome(run)}[/]: {plain(narrative.reason(run))}", highlight=False)
    if run.champion:
        console.print(f"champion: v{run.champion.version} {plain(run.champion.model)}", highlight=False)


def show_batch(batch: Batch, console: Console) -> None:
    """Prints what became of one drop: verdicts by class, reasons, what is not trained, rejected or warned of."""
    table = Table("verdict", "class", "files", title=f"batch {plain(batch.batch)}", title_justify="left")
    for verdict, labels in batch.counts.items():
        for label, n in labels.items():
            table.add_row(verdict, plain(label), str(n))
    console.print(table)
    for reason, n in batch.reasons.items():
        console.print(f"  {n} × {plain(reason)}", highlight=False)
    for label, n in batch.untrained.items():
        console.print(f"  class {plain(label)}: known label, not trained ({n} accepted)", highlight=False)
    for label, why in batch.rejected_classes.items():
        console.print(f"  class {plain(label)} rejected: {plain(why)}", highlight=False)
    for f in (f for f in batch.failures if f.severity == "warning"):
        subject = f"{f.subject}: " if f.subject else ""
        told = f"{f.suite}.json: {subject}{f.column} is {f.observed}, expected {f.limit}"
        console.print(f"  [bold red]Warning:[/] {plain(told)}", highlight=False)


def dataset_remarks(dataset: Dataset | None) -> list[str]:
    """What is to be known of a dataset besides its counts: shortcuts, drift, warnings; as rich markup."""
    told = [*narrative.shortcuts(dataset), *narrative.drift(dataset)]
    return [f"[bold red]Warning:[/] {plain(text)}" if warns else plain(text) for text, warns in told]


def candidates_table(evaluations: tuple[Evaluation, ...] | list[Evaluation]) -> Table:
    """Recall and F1 on the test images, candidates first, the champion below."""
    table = Table("model", "class", "recall", "F1", "test images", title="on the test images", title_justify="left")
    champions = {e.champion.model: e.champion for e in evaluations if e.champion}
    for e, role in [(e, "") for e in evaluations] + [(e, " (champion)") for e in champions.values()]:
        for label, m in e.test.classes.items():
            table.add_row(plain(e.model) + role, plain(label), f"{m.recall:.3f}", f"{m.f1:.3f}", str(m.support))
        for name, metrics in e.robustness.items():
            table.add_row("", f"macro, {plain(name)}", "", f"{metrics.macro_f1:.3f}", "")
        table.add_row("", "macro", "", f"{e.test.macro_f1:.3f}", "", end_section=True)
    return table


def decision_table(decision: Decision) -> Table:
    """The gate's decision, check by check."""
    word = "[bold green]open" if decision.promote else "[bold red]shut"
    table = Table("check", "observed", "95 %", "limit", "passed", title=f"gate: {word}[/]", title_justify="left")
    for c in decision.checks:
        span = formatting.span(c.interval, percent=False)
        table.add_row(
            plain(c.name), _observed(c), span, plain(formatting.check_limit(c)), "[green]yes" if c.passed else "[red]no"
        )
    return table


def _observed(check: Check) -> str:
    return formatting.NOT_EVALUATED if check.observed is None else f"{check.observed:.4g}"


def decision_markdown(decision: Decision) -> str:
    """The gate's decision in Markdown, for the question to a human in Airflow's UI."""
    rows = [f"**{formatting.markdown(decision.model)}**: {formatting.markdown(decision.reason)}", ""]
    rows += ["| check | observed | 95 % interval | limit | passed |", "|-|-|-|-|-|"]
    for c in decision.checks:
        span, limit = formatting.span(c.interval, percent=False), formatting.check_limit(c)
        cells = (c.name, _observed(c), span, limit, "yes" if c.passed else "NO")
        rows.append("| " + " | ".join(map(formatting.markdown, cells)) + " |")
    return "\n".join(rows)
