"""``stdc-fast benchmark``: the table of a workload, or of several."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Optional

import typer

from stdc_fast.cli.options import exact_size, note
from stdc_fast.errors import UserError
from stdc_fast.files import writable


def benchmark(
    model: Annotated[
        str, typer.Option("--model", "-m", help="Embedded name, file, or stdc1, stdc2: random weights.")
    ] = "stdc1_camvid",
    size: Annotated[list[str], typer.Option(help="HEIGHTxWIDTH of the network's input; may be repeated.")] = [  # noqa: B006
        "512x1024"
    ],
    batch: Annotated[list[int], typer.Option(min=1, max=256, help="Images at once; may be repeated.")] = [1],  # noqa: B006
    dtype: Annotated[
        str, typer.Option(help="What ours and the peers run in: auto and names, with commas between.")
    ] = "auto,float32",
    scopes: Annotated[
        str, typer.Option(help="Of logits, labels, frame, with commas between.")
    ] = "logits,labels",
    backends: Annotated[
        str, typer.Option(help="Ours: all that are available, or names with commas.")
    ] = "all",
    peers: Annotated[str, typer.Option(help="all, none, or names with commas between.")] = "all",
    int8: Annotated[bool, typer.Option("--int8", help="Peers quantised to 8 bits, too, on a CPU.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[
        Optional[int], typer.Option(min=1, help="Of all runners. Default: torch's own.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="At most.")] = 9,
    seconds: Annotated[
        float, typer.Option(min=0, help="No round that would end later; three are done in any case.")
    ] = 150.0,
    scaling: Annotated[
        bool, typer.Option("--scaling", help="Instead: time against pixels, batch and threads.")
    ] = False,
    roofline: Annotated[
        bool,
        typer.Option(
            "--roofline", help="Instead: each op of backend cpu against the limits of this machine."
        ),
    ] = False,
    plot: Annotated[
        Optional[Path], typer.Option(help="With --roofline: write a figure, .svg or .png.", metavar="FILE")
    ] = None,
    photo: Annotated[Optional[Path], typer.Option(help="Photo to label. Default: a street.")] = None,
    out: Annotated[
        Optional[Path], typer.Option("--out", "-o", help="Append the records to this file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the records, a line each.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Measure the library beside what people would use instead, in turns, in one run.

    Each runner has a process of its own and one turn a round; ratios are taken round by round. A runner that
    does not agree with the float64 reference on a photo is refused: no speed is given for it. Exit code 1 if
    that is ours. With all peers it takes two to three minutes on two idle cores.

    Example: stdc-fast benchmark --model stdc1_camvid --size 512x1024
    """
    import torch

    from stdc_fast.backends import resolve_device
    from stdc_fast.benchmark import records, run, table, workloads
    from stdc_fast.benchmark import roofline as roofs
    from stdc_fast.benchmark import scaling as scaled
    from stdc_fast.benchmark.selection import parse
    from stdc_fast.hardware import cpu
    from stdc_fast.viewer.save import figure_format

    if scaling and (size, batch, scopes) != (["512x1024"], [1], "logits,labels"):
        raise UserError(
            "--scaling has its own sizes, batches and scope; leave out --size, --batch and --scopes"
        )
    if roofline:
        if scaling:
            raise UserError("--roofline and --scaling are two measurements; ask for one")
        if scopes != "logits,labels" or peers not in ("all", "none") or int8:
            raise UserError(
                "--roofline is of ours from frame to labels; leave out --scopes, --peers and --int8"
            )
        roofs.check(str(resolve_device(device)), backends)
        backends, peers = "cpu", "none"
    if plot is not None:
        if not roofline or len(size) * len(batch) > 1:
            raise UserError("--plot is of one --roofline; add that, with one --size and one --batch")
        figure_format(plot)
        writable(plot)
    sizes = [exact_size(text) for text in size]
    selection = parse(dtype=dtype, scopes=scopes, backends=backends, peers=peers, int8=int8, device=device)
    cores = cpu()["cores"]
    if threads is not None and threads > cores:
        raise UserError(f"--threads {threads}: this machine has {cores} cores for us; use at most that many")
    workloads.check_photo(photo or workloads.PHOTO)
    if out is not None:
        records.check(out)
    settings = run.Settings(
        device=selection.device,
        scopes=selection.scopes,
        threads=threads or torch.get_num_threads(),
        rounds=rounds,
        seconds=seconds,
        say=lambda line: note(line, quiet),
    )
    broken = []
    with tempfile.TemporaryDirectory() as folder:
        weights = workloads.resolve(model, Path(folder))
        jobs = [(height, width, n) for height, width in sizes for n in batch]
        for height, width, n in jobs:
            name = Path(model).stem
            workload = workloads.Workload(name, weights, height, width, n, photo or workloads.PHOTO)
            measure = scaled.measure if scaling else roofs.measure if roofline else run.measure
            record = measure(workload, selection.specs, settings, selection.dtypes)
            if out is not None:
                records.append(record, out)
            if as_json:
                print(json.dumps(record))
            else:
                if scaling:
                    lines = table.fits(record)
                else:
                    lines = roofs.lines(record) if roofline else table.rows(record, workloads.SCOPES)
                print("\n".join([*table.header(record), *lines, ""]))
            if plot is not None and any(row["status"] == "measured" for row in record["rows"]):
                roofs.draw(record, plot)
                note(f"{plot}: written", quiet=False)
            broken += [row for row in record["rows"] if row["ours"] and row["status"] != "measured"]
    if broken:
        row = broken[0]
        message = f"{row['runner']} {row['dtype']} was {row['status']}: {row['reason']}"
        print(f"stdc-fast: {message}", file=sys.stderr)
        raise typer.Exit(1)
