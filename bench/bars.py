"""Bars of the benchmark report: each runner's time for one workload, and the six that decide."""

from __future__ import annotations

from collections.abc import Iterator

from matplotlib.figure import Figure

from bench.measured import SCOPES, Device, Found, Workload
from bench.page import GRID, OURS, PEER, by_time, inches, new_page, plain_axes, row_name
from bench.words import runs_of, significant

#: Bars of the short figure.
MOST = 6


def latency(device: Device) -> Iterator[tuple[Figure, str]]:
    """Bars of one workload, a panel for each scope."""
    if timed := _of_one_workload(device):
        yield _bars(device, timed)


def six(device: Device) -> Iterator[tuple[Figure, str]]:
    """The bars that decide, of the widest scope; none where there are no more bars than these.

    They are ours in two dtypes, the fastest peer of each dtype, and the fastest of the other peers.
    """
    timed = _of_one_workload(device)
    scopes = [scope for scope in SCOPES if any(f.row.scope == scope for f in timed)]
    rows = sorted((f for f in timed if f.row.scope == scopes[-1]), key=by_time) if scopes else []
    if len(rows) <= MOST:
        return
    peers = [found for found in rows if not found.row.ours]
    first = {found.row.dtype: found for found in reversed(peers)}.values()
    chosen = {f.row.dtype: f for f in reversed(rows) if f.row.ours}.values()
    chosen = [*sorted(chosen, key=by_time)[:2], *sorted(first, key=by_time)]
    runners = {found.row.runner for found in chosen}
    chosen += [f for f in peers if f.row.runner not in runners]
    yield _bars(device, chosen[:MOST])


def _of_one_workload(device: Device) -> list[Found]:
    """The measured rows of the most typical workload."""
    timed = [found for found in device.rows if found.row.measured]
    workload = _typical(timed) if timed else None
    return [found for found in timed if found.row.workload == workload]


def _bars(device: Device, timed: list[Found]) -> tuple[Figure, str]:
    """A panel for each scope, the fastest runner first."""
    workload = timed[0].row.workload
    panels = {scope: [f for f in timed if f.row.scope == scope] for scope in SCOPES}
    panels = {scope: sorted(rows, key=by_time) for scope, rows in panels.items() if rows}
    several = len({f.row.threads for f in timed}) > 1
    bases = sorted({str(f.row.baseline) for f in timed if f.row.ratio and f.row.baseline})
    notes = f"medians, whiskers p20 to p80 of rounds; {runs_of(timed)}"
    if len(bases) == 1:
        notes += f"; x: time over that of {bases[0]}, round by round"
    page, below = new_page(
        f"{workload} on {device.name}", notes, 0.21 * len(timed) + 0.42 * len(panels) - 0.15, 0.45,
        left=inches(row_name(f.row, several) for f in timed),
    )  # fmt: skip
    longest = 1e3 * max(found.row.seconds.p80 for found in timed)
    at = 0.0
    for scope, rows in panels.items():
        tall = 0.21 * len(rows)
        axes = below(at + 0.15, tall)
        at += tall + 0.42
        for i, (_, row) in enumerate(rows):
            middle = 1e3 * row.seconds.p50
            low, high = 1e3 * row.seconds.p20, 1e3 * row.seconds.p80
            axes.barh(i, middle, 0.74, color=OURS if row.ours else PEER, zorder=2)
            axes.plot([low, high], [i, i], color="#111111", lw=1, zorder=3, marker="|", ms=4)
            text = f"{significant(middle)} ms"
            if row.ratio and not row.ours:
                text += f"   {row.ratio.p50:.2f}x" + (f" {row.baseline}" if len(bases) > 1 else "")
            axes.annotate(
                text, (max(middle, high), i), (4, 0), textcoords="offset points", va="center", fontsize=7
            )
        axes.set_yticks(range(len(rows)))
        axes.set_yticklabels([row_name(row, several) for _, row in rows])
        for label, (_, row) in zip(axes.get_yticklabels(), rows, strict=True):
            label.set_fontweight("bold" if row.ours else "normal")
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0, longest * (1.6 if len(bases) > 1 else 1.25))
        axes.set_title(scope, loc="left", fontsize=8.5, fontweight="bold", pad=3)
        axes.grid(axis="x", color=GRID, lw=0.7, zorder=0)
        plain_axes(axes)
        axes.tick_params(axis="x", labelbottom=False, length=0)
    axes.tick_params(axis="x", labelbottom=True)
    axes.set_xlabel("ms (less is better)")
    fastest = "; ".join(
        f"{scope}: {row_name(rows[0].row)} {significant(1e3 * rows[0].row.seconds.p50)} ms"
        for scope, rows in panels.items()
    )
    return page, f"Bars: median time of each runner for {workload} on {device.name}. Fastest: {fastest}."


def _typical(timed: list[Found]) -> Workload:
    """The workload with the most rows, where possible of batch 1 and 512x1024."""
    counts: dict[Workload, int] = {}
    for found in timed:
        counts[found.row.workload] = counts.get(found.row.workload, 0) + 1
    return min(
        counts,
        key=lambda w: (w.batch != 1, (w.height, w.width) != (512, 1024), -counts[w], w.height * w.width, w),
    )
