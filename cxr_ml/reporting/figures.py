"""Plots of a model as PNG bytes: readable on a phone, in grey and by the colour-blind."""

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from cxr_ml.evaluation.metrics import wilson
from cxr_ml.records import Evaluation, Metrics, Run
from cxr_ml.reporting import formatting, plot_style
from cxr_ml.reporting.narrative import chosen
from cxr_ml.reporting.plot_style import BLUE, INK, ORANGE, VERMILION, WIDTH

STAGES = {"head": "head", "fine_tune": "fine-tune"}


def best_epochs(history: pd.DataFrame) -> dict[str, int]:
    """Returns stage -> its best epoch, whose weights are kept."""
    return history[history["kept"]].set_index("stage")["epoch"].to_dict()


def losses(model: str, history: pd.DataFrame | None) -> bytes:
    """Draws loss and macro F1 over the epochs of both stages, the best epoch of each and the start of fine-tuning.

    Args:
        model: name of the model, shown in the title.
        history: a row per epoch with the columns of `history.csv`: `stage` (head or fine_tune), `epoch` (through both
            stages, from 1), `loss, val_loss, val_calibrated, f1, val_f1` and `kept` (whether it is the best of its
            stage); None or no rows where it is not known.

    Returns:
        A PNG.
    """
    if history is None or history.empty:
        return plot_style.empty(f"No loss curve: {plot_style.name(model, 40)} has no training history.")
    history = history.replace([np.inf, -np.inf], np.nan).reset_index(drop=True).sort_values("epoch")
    if history[["loss", "val_loss"]].isna().all(axis=None):
        return plot_style.empty(f"No loss curve: every loss of {plot_style.name(model, 40)} is NaN or infinite.")
    figure = plot_style.figure(5.2)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    _plot_course(top, history, "loss", "loss\n(cross-entropy)", 1)
    _plot_course(bottom, history, "f1", "macro F1 (%)", 100)
    epochs, judged = history["epoch"], history["val_calibrated"]
    top.plot(epochs, judged, ":", color=BLUE, linewidth=2, label="validation, best temperature")
    best = best_epochs(history)
    for number, epoch in enumerate(sorted(best.values())):
        label = "" if number else "epoch kept of a stage"
        star = {"color": VERMILION, "markeredgecolor": INK, "markersize": 15, "zorder": 5}
        top.plot([epoch], judged[epochs == epoch], "*", label=label, **star)
    starts = history.groupby("stage", sort=False)["epoch"].min()
    if "fine_tune" in starts and len(starts) > 1:
        for axes, label in ((top, "fine-tuning starts"), (bottom, "")):
            axes.axvline(starts["fine_tune"] - 0.5, color=INK, linestyle=":", linewidth=1.5, label=label)
    kept = (f"kept of {STAGES.get(s, plot_style.name(s))}: {best[s]}" for s in starts.index if s in best)
    bottom.set_xlabel("epoch · " + " · ".join(kept))
    last = float(epochs.max())
    bottom.set_xlim(0.5, last + max(0.5, 0.02 * last))  # room for a star at the last epoch
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    handles, labels = top.get_legend_handles_labels()
    title = plot_style.name(model, 48)
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=10, title=title)
    return plot_style.png(figure)


def _plot_course(axes: Axes, history: pd.DataFrame, column: str, label: str, scale: int) -> None:
    """Plots a column of the training images and of the validation images over the epochs."""
    epochs = history["epoch"]
    training, validation = history[column] * scale, history[f"val_{column}"] * scale
    axes.plot(epochs, training, "o--", color=ORANGE, markersize=3, linewidth=1.5, label="training")
    axes.plot(epochs, validation, "s-", color=BLUE, markersize=3, linewidth=2, label="validation")
    axes.set_ylabel(label)
    axes.grid(axis="y", color="#e4e4e4")
    plot_style.axes(axes)


def recalls(run: Run, floors: dict[str, float]) -> bytes:
    """Test recall of each class of the chosen candidate and the champion, with 95 % intervals, against the floors.

    Args:
        run: the run; its decision names the candidate.
        floors: class -> lowest recall allowed (0–1).
    """
    evaluation = chosen(run)
    if evaluation is None:
        return plot_style.empty("No recall to show: this run chose no candidate.")
    names = list(evaluation.test.classes)
    series = [("candidate", evaluation.test, -0.17, "o", BLUE, BLUE)]
    if evaluation.champion is not None:
        series.append(("champion", evaluation.champion.test, 0.17, "s", "white", INK))
    figure = plot_style.figure(1.7 + 0.62 * len(names))
    axes = plot_style.axes(figure.subplots())
    lows = [100 * floors[n] for n in names if n in floors]
    for label, metrics, shift, marker, face, edge in series:
        points = []
        for row, name in enumerate(names):
            scores = metrics.classes.get(name)
            span = None if scores is None else wilson(scores.recall, scores.support)
            text = formatting.NOT_EVALUATED
            if scores is not None and span is not None:
                points.append((row + shift, 100 * scores.recall, 100 * span[0], 100 * span[1]))
                text = f"{formatting.percent(scores.recall, floors.get(name))} of {scores.support}"
            axes.text(
                1.02, row + shift, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9.5,
                color=INK, fontweight="bold" if label == "candidate" else "normal",
            )  # fmt: skip
        if points:
            y, x, low, high = np.array(points).T
            lows.append(low.min())
            axes.errorbar(
                x, y, xerr=(x - low, high - x), fmt=marker, color=edge, markerfacecolor=face, markersize=7, capsize=3,
                linewidth=1.5, label=f"{label}, 95 % interval",
            )  # fmt: skip
    floor_rows = [(r, 100 * floors[n]) for r, n in enumerate(names) if n in floors]
    if floor_rows:
        rows, at = np.array(floor_rows).T
        axes.vlines(at, rows - 0.42, rows + 0.42, color=VERMILION, linewidth=3, linestyle=(0, (2, 1)), label="floor")
    left = 10 * math.floor((min(lows, default=0) - 2) / 10)
    axes.set_xlim(max(-1, left), 101)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), [plot_style.name(n) for n in names])
    axes.set_xlabel("recall on the test images (%)")
    axes.grid(axis="x", color="#e4e4e4")
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: labels[i] == "floor")
    figure.legend(
        [handles[i] for i in order], [labels[i] for i in order], loc="outside upper left", ncols=2, frameon=False,
        fontsize=10,
    )  # fmt: skip
    return plot_style.png(figure)


def differences(evaluation: Evaluation, margins: dict[str, float]) -> bytes:
    """Candidate less champion on the same test images, with 95 % intervals, and how far below a figure may lie.

    Args:
        evaluation: of the candidate, with its difference to the champion.
        margins: name of a figure -> how far below the champion's its interval may reach (0–1).
    """
    difference = evaluation.difference
    names = ["macro F1", *(f"recall {label}" for label in evaluation.test.classes)]
    names = [n for n in names if difference and math.isfinite(difference.figures.get(n, math.nan))]
    if difference is None or not names:
        return plot_style.empty("No difference to show: there is no champion on the same images.")
    figure = plot_style.figure(1.4 + 0.42 * len(names))
    axes = plot_style.axes(figure.subplots())
    axes.axvline(0, color=INK, linewidth=1)
    for row, name in enumerate(names):
        value = 100 * difference.figures[name]
        low, high = (100 * end for end in difference.intervals.get(name, (math.nan, math.nan)))
        if math.isfinite(low):
            axes.hlines(row, low, high, color=BLUE, linewidth=2)
            axes.plot([low, high], [row, row], "|", color=BLUE, markersize=9, markeredgewidth=2)
        axes.plot(value, row, "o", color=BLUE, markersize=7)
        text = f"{value:+.1f}" + (f"  ({low:+.1f} to {high:+.1f})" if math.isfinite(low) else "")
        place = axes.get_yaxis_transform()
        axes.text(1.02, row, text.replace("-", "−"), transform=place, va="center", fontsize=9.5, color=INK)
    allowed = [(row, -100 * margins[name]) for row, name in enumerate(names) if name in margins]
    if allowed:
        rows, at = np.array(allowed).T
        axes.vlines(
            at, rows - 0.4, rows + 0.4, color=VERMILION, linewidth=3, linestyle=(0, (2, 1)),
            label="as far below as the gate lets the interval reach",
        )  # fmt: skip
        figure.legend(loc="outside upper left", frameon=False, fontsize=10)
    left, right = axes.get_xlim()
    axes.set_xlim(min(left, -1), max(right, 1))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), [plot_style.name(n, 24) for n in names])
    axes.set_xlabel("candidate less champion, percentage points\n(macro F1 times 100), 95 % interval")
    axes.grid(axis="x", color="#e4e4e4")
    return plot_style.png(figure)


def confusion(metrics: Metrics, classes: tuple[str, ...]) -> bytes:
    """Confusion matrix: images and share of the true class (row %) in each cell.

    Args:
        metrics: one model on one split; `confusion` has one row per true class.
        classes: names of the rows and columns, in their order.
    """
    counts = np.array(metrics.confusion, dtype=float).reshape(-1, len(metrics.confusion) or 1)
    size = len(classes)
    if size == 0 or counts.shape != (size, size) or counts.sum() == 0:
        return plot_style.empty("No confusion matrix: no test image was evaluated.")
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    side = max(WIDTH, 2.2 + 0.62 * size)
    figure = plot_style.figure(side * 0.86, side)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row in range(size):
        for column in range(size):
            text = "–" if totals[row, 0] == 0 else f"{counts[row, column]:.0f}\n{100 * shares[row, column]:.1f} %"
            axes.text(
                column, row, text, ha="center", va="center", fontsize=12 if size <= 4 else 9,
                color="white" if shares[row, column] > 0.66 else INK,
            )  # fmt: skip
    slanted = size > 4 or max(map(len, classes)) > 12
    axes.set_xticks(
        range(size), [plot_style.name(c, 18) for c in classes],
        rotation=40 if slanted else 0, ha="right" if slanted else "center",
        rotation_mode="anchor" if slanted else "default",
    )  # fmt: skip
    axes.set_yticks(
        range(size), [f"{plot_style.name(c, 18)}\n{t:.0f} images" for c, t in zip(classes, totals[:, 0], strict=True)]
    )
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0, labelsize=10, colors=INK)
    axes.set_xlabel("predicted class", fontsize=11)
    axes.set_ylabel("true class", fontsize=11)
    axes.set_title("images, and % of the true class", fontsize=11, color=INK)
    return plot_style.png(figure)
