"""The figure of ``stdc-fast calibrate --plot``: what each op alone costs in 8 bits. Needs matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from stdc_fast.viewer.facts import short

if TYPE_CHECKING:
    from stdc_fast.calibration.record import Calibration

_HERE, _ELSEWHERE, _KEPT = "#1f4e9c", "#8ec1ea", "#d55e00"
_GREY = "#555555"
# All in inches.
_ACROSS, _LEFT, _GAP, _RIGHT, _HEAD, _ROW, _FOOT = 9.0, 2.1, 0.35, 0.25, 0.78, 0.19, 0.75


def figure(calibration: Calibration, name: str) -> Figure:
    """Errors of logits on the left and labels that change on the right, a row an op, and all together."""
    about = calibration.about
    rows = about["alone"]
    whole = _HEAD + _ROW * (len(rows) + 1) + _FOOT
    page = Figure(figsize=(_ACROSS, whole))
    FigureCanvasAgg(page)
    page.patch.set_facecolor("white")
    title, where = f"{name}: each op alone in 8 bits", f"{calibration}, stdc_fast {calibration.version}"
    page.text(0.012, 1 - 0.1 / whole, title, fontsize=11, fontweight="bold", va="top")
    page.text(0.012, 1 - 0.34 / whole, where, fontsize=7.5, color=_GREY, va="top")
    wide = (_ACROSS - _LEFT - _GAP - _RIGHT) / 2
    panels = []
    for i in range(2):
        left = _LEFT + i * (wide + _GAP)
        box = left / _ACROSS, _FOOT / whole, wide / _ACROSS, _ROW * (len(rows) + 1) / whole
        panels.append(page.add_axes(box))
    names = [short(row["name"]) for row in rows] + [f"{len(about['ops'])} ops together"]
    colours = [_colour(row, about["ops"]) for row in rows] + ["#111111"]
    errors = [row["error"] for row in rows] + [about["error"]]
    changed = [1 - row["agreement"] for row in rows] + [1 - about["agreement"]]
    _bars(panels[0], errors, colours, "relative error of logits")
    _bars(panels[1], [100 * share for share in changed], colours, "labels that change, %")
    panels[0].set_yticks(range(len(names)), names)
    panels[1].set_yticks([])
    if about["limit"] is not None:
        panels[0].axvline(about["limit"], color=_KEPT, lw=0.8, ls=(0, (4, 2)))
    words = "Dark: multiplied in 8 bits on this machine. Light: in floats, as that is faster. "
    words += "Orange: left out of 8 bits, asked for or beyond the dashed limit."
    page.text(0.012, 0.07 / whole, words, fontsize=7, color=_GREY, va="bottom")
    return page


def _colour(row: dict, ops: list[str]) -> str:
    if row["kept"]:
        return _KEPT
    return _HERE if row["name"] in ops else _ELSEWHERE


def _bars(axes: Axes, values: list[float], colours: list[str], label: str) -> None:
    axes.barh(range(len(values)), values, color=colours, height=0.72)
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.set_xlabel(label, fontsize=8)
    axes.grid(axis="x", color="#e4e4e4", lw=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=7)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
