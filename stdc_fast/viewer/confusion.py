"""The figure of a confusion matrix. Needs matplotlib."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from stdc_fast.evaluation import Evaluation

# In inches: a cell, and the room for names and words around the matrix.
_CELL, _LEFT, _RIGHT, _HEAD, _FOOT = 0.42, 1.35, 1.1, 1.35, 0.75


def figure(result: Evaluation, title: str) -> Figure:
    """Shares of each true class in percent, with each class's pixels and IoU beside its row."""
    pixels = result.matrix.sum(1)
    shares = np.divide(100 * result.matrix, pixels[:, None], where=pixels[:, None] > 0,
                       out=np.zeros(result.matrix.shape))  # fmt: skip
    names, count = result.classes.names, len(result.classes)
    side = count * _CELL
    width, height = max(_LEFT + side + _RIGHT, 6.5), _HEAD + side + _FOOT
    page = Figure(figsize=(width, height))
    FigureCanvasAgg(page)
    page.patch.set_facecolor("white")
    axes = page.add_axes((_LEFT / width, _FOOT / height, side / width, side / height))
    # The square root of the share: mistakes of a few percent are to be seen beside a full diagonal.
    axes.imshow(np.sqrt(shares / 100), cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(shares >= 0.05), strict=True):
        share = shares[row, column]
        text = f"{share:.0f}" if share >= 9.95 else f"{share:.1f}"
        colour = "white" if share > 30 else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(count), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(count), names)
    axes.set_xticks(np.arange(count - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(count - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="#dddddd", linewidth=0.5)
    axes.tick_params(length=0, which="both")
    axes.set_ylabel("true class")
    axes.set_xlabel("predicted class, % of the true class's pixels")
    beside = {"fontsize": 7, "va": "center", "ha": "right", "color": "#333333"}
    edge = count - 0.5
    for row, (iou, number) in enumerate(zip(result.iou(), pixels, strict=True)):
        text = "absent" if iou != iou else f"{iou:.1%}"
        axes.text(edge + 1.15, row, text, **beside)
        axes.text(edge + 2.4, row, _short(int(number)), **beside)
    axes.text(edge + 1.15, -0.85, "IoU", **beside)
    axes.text(edge + 2.4, -0.85, "pixels", **beside)
    head = f"mean IoU {result.miou():.2%}, pixel accuracy {result.pixel_accuracy():.2%}"
    page.text(0.1 / width, 1 - 0.1 / height, head, fontsize=10, fontweight="bold", va="top")
    about = textwrap.fill(f"{title}; {result.how()}", int((width - 0.2) * 19))
    page.text(0.1 / width, 1 - 0.34 / height, about, fontsize=6.5, color="#555555", va="top")
    return page


def _short(number: int) -> str:
    """1234567 as "1.2M"."""
    for unit, name in ((1_000_000, "M"), (1000, "k")):
        if number >= unit:
            return f"{number / unit:.1f}{name}"
    return str(number)
