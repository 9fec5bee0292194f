"""``stdc-fast export``: the saved plan of a network, for the engine's C++ API."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stdc_fast.errors import UserError

# Suffixes of other programs' formats.
_OTHERS = (
    ".onnx", ".pt", ".pth", ".pt2", ".ckpt", ".safetensors", ".engine", ".trt", ".xml", ".tflite", ".param",
    ".mnn", ".mlmodel", ".pdparams",
)  # fmt: skip


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name or checkpoint file.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Saved plan to write.")],
    dtype: Annotated[str, typer.Option(help="Of maps and weights, as the engine computes.")] = "float32",
) -> None:
    """Write a network as C++ programs read it, without Python and torch; see examples/cpp.

    Example: stdc-fast export stdc1_camvid --out stdc1.plan
    """
    from stdc_fast import checkpoints, zoo
    from stdc_fast.backends import cpu
    from stdc_fast.backends.cpu import program
    from stdc_fast.plan import build, optimise

    if out.suffix.lower() in _OTHERS:
        raise UserError(f"{out}: {out.suffix} is not the format of the saved plan; name it .plan")
    known = {precision.name: precision for precision in program.PRECISIONS}
    if dtype not in known:
        raise UserError(f"--dtype must be one of {', '.join(known)}, not {dtype!r}")
    path = zoo.find(model)
    try:
        plan = optimise(build(checkpoints.read(path).network()))
    except UserError as error:
        raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    reason = program.why_not(plan, known[dtype])
    if reason is not None:
        raise UserError(f"{path}: the native engine can not run it: {reason}")
    cpu.save(plan, known[dtype], out)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, {plan.name}, {dtype}")
