"""Plots of the data as PNG bytes: class balance, growth over the versions, what was refused."""

from collections.abc import Sequence

from matplotlib.ticker import MaxNLocator

from cxr_ml.records import Dataset, Run
from cxr_ml.reporting import plot_style
from cxr_ml.reporting.plot_style import BLUE, GREY, INK, ORANGE

# Of each split: colour and hatch of its bars; colour, marker and line of its course.
BARS = {"train": (BLUE, ""), "validation": (ORANGE, "////"), "test": ("#cccccc", "....")}
LINES = {"train": (BLUE, "o", "-"), "validation": (ORANGE, "s", "--"), "test": (INK, "^", ":")}
_REASONS = 15  # bars of refused files, the most frequent reasons


def _splits(datasets: Sequence[Dataset]) -> list[str]:
    found = {split for dataset in datasets for split in dataset.counts}
    return [s for s in BARS if s in found] + sorted(found - set(BARS))


def _classes(datasets: Sequence[Dataset]) -> list[str]:
    return sorted({label for dataset in datasets for counts in dataset.counts.values() for label in counts})


def balance(run: Run) -> bytes:
    """Images per class and split of the run's dataset."""
    if run.dataset is None or not any(sum(c.values()) for c in run.dataset.counts.values()):
        return plot_style.empty("No class balance to show: this run built no dataset.")
    counts, splits, names = run.dataset.counts, _splits([run.dataset]), _classes([run.dataset])
    figure = plot_style.figure(1.3 + 0.27 * len(splits) * len(names))
    axes = plot_style.axes(figure.subplots())
    thick = 0.84 / len(splits)
    for number, split in enumerate(splits):
        colour, hatch = BARS.get(split, (GREY, "xx"))
        rows = [row + (number - (len(splits) - 1) / 2) * thick for row in range(len(names))]
        values = [counts[split].get(name, 0) for name in names]
        bars = axes.barh(
            rows, values, thick * 0.9, color=colour, hatch=hatch, edgecolor=INK, linewidth=0.6,
            label=plot_style.name(split),
        )  # fmt: skip
        axes.bar_label(bars, labels=[f"{v:,}" for v in values], padding=3, fontsize=9.5, color=INK)
    axes.margins(x=0.14, y=0.02)
    axes.invert_yaxis()
    axes.set_yticks(range(len(names)), [plot_style.name(n) for n in names])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.set_xlabel(f"images in dataset {run.dataset.dataset}")
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=10)
    return plot_style.png(figure)


def growth(versions: Sequence[Dataset]) -> bytes:
    """Images of each class and split over the versions of the dataset, a panel per class.

    Args:
        versions: the dataset and those that it descends from, in any order.
    """
    versions = sorted(versions, key=lambda d: d.dataset)
    if len(versions) < 2:
        return plot_style.empty("No growth to show: this is the first dataset.")
    splits, names = _splits(versions), _classes(versions)
    numbers = [d.dataset for d in versions]
    rows = -(-len(names) // 2)
    figure = plot_style.figure(0.8 + 1.75 * rows)
    panels = figure.subplots(rows, 2, sharex=True, squeeze=False).flat
    sparse = max(1, len(numbers) // 10)
    for place, (panel, label) in enumerate(zip(panels, names, strict=False)):
        axes = plot_style.axes(panel)
        axes.tick_params(labelbottom=place + 2 >= len(names))
        last = []
        for split in splits:
            colour, marker, line = LINES.get(split, (GREY, "x", "-."))
            values = [d.counts.get(split, {}).get(label, 0) for d in versions]
            axes.plot(
                numbers, values, marker + line, color=colour, markersize=4, linewidth=1.6, label=plot_style.name(split),
                markevery=(-1 % len(numbers) % sparse, sparse),
            )  # fmt: skip
            last.append(f"{values[-1]:,}")
        axes.set_title(f"{plot_style.name(label)}\nnow {' / '.join(last)}", fontsize=10, color=INK)
        axes.set_ylim(bottom=0)
        axes.set_xlim(numbers[0] - 0.5, numbers[-1] + 0.5)
        axes.margins(y=0.1)
        axes.grid(axis="y", color="#e4e4e4")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    figure.supxlabel("dataset version", fontsize=11)
    figure.supylabel("images", fontsize=11)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=10)
    return plot_style.png(figure)


def refused(reasons: dict[str, int]) -> bytes:
    """Refused files by reason, the most frequent first; the rest is counted together.

    Args:
        reasons: reason code -> files. A file may have several reasons.
    """
    if not sum(reasons.values()):
        return plot_style.empty("No file was refused.")
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    shown, rest = ordered[:_REASONS], ordered[_REASONS:]
    if rest:
        shown.append((f"{len(rest)} further reasons", sum(files for _, files in rest)))
    figure = plot_style.figure(0.9 + 0.34 * len(shown))
    axes = plot_style.axes(figure.subplots())
    bars = axes.barh(
        range(len(shown)), [files for _, files in shown], 0.7, color="#cccccc", edgecolor=INK, linewidth=0.6
    )
    axes.bar_label(bars, labels=[f"{files:,}" for _, files in shown], padding=3, fontsize=9.5, color=INK)
    axes.margins(x=0.14, y=0.02)
    axes.invert_yaxis()
    axes.set_yticks(range(len(shown)), [plot_style.name(code.replace("_", " "), 34) for code, _ in shown])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.set_xlabel("files")
    return plot_style.png(figure)
