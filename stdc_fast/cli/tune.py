"""``stdc-fast tune``: measures which tiles are fastest on this GPU."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from stdc_fast.cli.options import Model, Quiet, exact_size


def tune(
    model: Model = "stdc1_camvid",
    size: Annotated[
        Optional[list[str]], typer.Option(help="HEIGHTxWIDTH that the network sees; may be repeated.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 1,
    dtype: Annotated[str, typer.Option(help="auto, or one that the backend computes in.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cuda or cuda:N.")] = "auto",
    backend: Annotated[
        str, typer.Option(help="cuda, triton, or auto: the one that would run this.")
    ] = "auto",
    seconds: Annotated[float, typer.Option(min=1, help="Limit for each size.")] = 300,
    quiet: Quiet = False,
) -> None:
    """Measure which tiles are fastest on this GPU for the backend; it uses them from then on.

    A run that was stopped, or came to its limit, is gone on with by the next one.

    Example: stdc-fast tune --size 512x1024 --size 768x1536
    """
    from stdc_fast.tune import tune_network

    texts = size or ["512x1024"]
    results = tune_network(
        model, [exact_size(text) for text in texts], batch, dtype, device, seconds, quiet, backend
    )
    for text, result in zip(texts, results, strict=True):
        ended = "" if result.finished else " (stopped at the limit; the same command goes on)"
        print(
            f"{result.backend}, {text}, batch {batch}: {result.before * 1e6:.0f} us before, "
            f"{result.after * 1e6:.0f} us after, {len(result.tiles)} kernels{ended}; "
            "used where the network sees just this size and batch"
        )
