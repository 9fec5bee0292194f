"""``stdc-fast serve``: labels for clients over HTTP."""

from __future__ import annotations

import sys
from typing import Annotated, Optional

import typer

from stdc_fast.cli.options import Backend, Device, Dtype, Memory, Model, Quiet, Scale, Size, note, parse_size


def serve(
    model: Model = "stdc1_camvid",
    host: Annotated[
        str, typer.Option(help="Address to listen at. Default: this machine alone.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 is any that is free.")] = 8000,
    scale: Scale = None,
    size: Size = None,
    max_batch: Annotated[
        Optional[int], typer.Option(help="Pictures of one size at once. Default: 8 on a GPU, 1 on a CPU.")
    ] = None,
    max_wait: Annotated[
        float, typer.Option(help="Milliseconds that a picture waits for others of its batch.")
    ] = 0.0,
    queue: Annotated[int, typer.Option(help="Pictures that are accepted at once; others get 429.")] = 32,
    workers: Annotated[
        Optional[int],
        typer.Option(help="Threads that decode and encode. Default: one a processor."),
    ] = None,
    max_bytes: Annotated[int, typer.Option(help="Of a picture's file.")] = 32 << 20,
    max_pixels: Annotated[int, typer.Option(help="Of a picture.")] = 32_000_000,
    read_timeout: Annotated[
        float, typer.Option(help="Seconds for a picture to come in, and for an answer to be taken.")
    ] = 20.0,
    timeout: Annotated[float, typer.Option(help="Seconds from a picture's last byte to its answer.")] = 60.0,
    grace: Annotated[
        float, typer.Option(help="Seconds after SIGTERM in which accepted pictures are finished.")
    ] = 30.0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    backend: Backend = "auto",
    memory: Memory = "fast",
    quiet: Quiet = False,
) -> None:
    """Serve labels over HTTP: POST a picture to /predict; / is a page to try it.

    SIGTERM and Ctrl-C end it when accepted pictures are answered, with exit code 0. It has no
    authentication.

    Example: stdc-fast serve --port 8000; curl -F file=@street.jpg "127.0.0.1:8000/predict?output=labels"
    """
    from stdc_fast import serve as served

    served.check_installed()
    settings = served.Settings(
        scale=scale, size=parse_size(size), max_batch=max_batch, max_wait=max_wait / 1000, queue=queue,
        workers=workers, max_bytes=max_bytes, max_pixels=max_pixels, read_timeout=read_timeout,
        timeout=timeout, grace=grace,
    )  # fmt: skip

    import stdc_fast
    from stdc_fast.serve.run import run

    def listening(address: str, loopback: bool) -> None:
        print(address, flush=True)
        if not loopback:
            note(
                f"stdc-fast: there is no authentication, and {address} is for all who reach it; "
                "put a proxy in between",
                quiet,
            )

    def ready(segmenter) -> None:
        note(f"stdc-fast: {segmenter.name} is ready: {segmenter.reason}", quiet)
        sys.stderr.flush()

    def load():
        return stdc_fast.load(model, device=device, dtype=dtype, backend=backend, memory=memory)

    run(load, settings, host, port, listening, ready)
