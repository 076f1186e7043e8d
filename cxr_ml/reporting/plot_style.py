"""What all plots have in common: size, colours, letters, and how a figure becomes PNG bytes."""

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from cxr_ml.reporting import formatting

# Okabe & Ito (2008), Color universal design. Every series differs in marker, line or hatch as well.
BLUE, ORANGE, VERMILION, INK, GREY = "#0072B2", "#E69F00", "#D55E00", "#1a1a1a", "#767676"
WIDTH = 5.6  # inches; at 11 pt this is legible when a phone shows it 360 px wide


def figure(height: float, width: float = WIDTH) -> Figure:
    """Returns an empty figure of this size in inches."""
    drawn = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(drawn)
    return drawn


def axes(panel: Axes) -> Axes:
    """Returns the axes, with letters and spines as all plots have them."""
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=10, colors=INK)
    panel.xaxis.label.set_fontsize(11)
    panel.yaxis.label.set_fontsize(11)
    return panel


def png(drawn: Figure) -> bytes:
    """Returns the figure as PNG bytes, small enough for a mail."""
    drawn.set_dpi(180)
    drawn.canvas.draw()
    pixels = drawn.canvas.buffer_rgba()  # type: ignore[attr-defined]  # `figure` attached an Agg canvas
    image = Image.fromarray(np.asarray(pixels)).convert("RGB")
    out = io.BytesIO()
    # A palette makes it a third as large, for mail.
    image.quantize(128).save(out, format="png", optimize=True)
    return out.getvalue()


def empty(message: str) -> bytes:
    """Returns a picture that says why there is no plot, as PNG bytes."""
    drawn = figure(1.2)
    drawn.text(0.5, 0.5, message, ha="center", va="center", fontsize=11, color=INK, wrap=True)
    return png(drawn)


def name(text: str, limit: int = 22) -> str:
    """Returns a name fit for a plot: of a long one both ends, since many names differ only there."""
    whole = formatting.plain(text)
    if len(whole) > limit:
        whole = f"{whole[: limit - 1 - limit // 2].rstrip()}…{whole[-(limit // 2) :].lstrip()}"
    # An unescaped pair of dollars would be read as mathematics.
    return whole.replace("$", r"\$")
