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
    """An empty figure of so many inches."""
    made = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(made)
    return made


def axes(made: Axes) -> Axes:
    """The axes with letters and spines as all plots have them."""
    made.spines[["top", "right"]].set_visible(False)
    made.tick_params(labelsize=10, colors=INK)
    made.xaxis.label.set_size(11)
    made.yaxis.label.set_size(11)
    return made


def png(made: Figure) -> bytes:
    """The figure as PNG bytes, small enough for a mail."""
    made.set_dpi(180)
    made.canvas.draw()
    image = Image.fromarray(np.asarray(made.canvas.buffer_rgba())).convert("RGB")
    out = io.BytesIO()
    # A palette makes it a third as large, for mail.
    image.quantize(128).save(out, format="png", optimize=True)
    return out.getvalue()


def empty(message: str) -> bytes:
    """A picture that says why there is no plot."""
    made = figure(1.2)
    made.text(0.5, 0.5, message, ha="center", va="center", fontsize=11, color=INK, wrap=True)
    return png(made)


def name(text: str, limit: int = 22) -> str:
    """A name from a drop as it may stand in a plot; of a long one both ends, for many differ only there."""
    whole = formatting.plain(text)
    if len(whole) > limit:
        whole = f"{whole[: limit - 1 - limit // 2].rstrip()}…{whole[-(limit // 2) :].lstrip()}"
    # An unescaped pair of dollars would be read as mathematics.
    return whole.replace("$", r"\$")
