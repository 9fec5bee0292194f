"""What ``stdc-fast info --plan`` shows: what a network computes, op by op."""

from __future__ import annotations

import json
from pathlib import Path

from stdc_fast.cli.options import exact_size, note
from stdc_fast.errors import UserError
from stdc_fast.precision import FLOAT64, PRECISIONS


def print_plan(
    model: str,
    size: str | None,
    batch: int,
    dtype: str | None,
    written: bool,
    figure: Path | None,
    as_json: bool,
) -> None:
    """A plan as a table or JSON on stdout, and as a figure; the arguments are the options' values."""
    from stdc_fast import checkpoints, zoo
    from stdc_fast.plan import build, optimise
    from stdc_fast.viewer import show

    size, dtype = "512x1024" if size is None else size, "float32" if dtype is None else dtype
    itemsizes = {name: p.maps.itemsize for name, p in PRECISIONS.items() if p != FLOAT64}
    if dtype not in itemsizes:
        raise UserError(f"--dtype must be one of {', '.join(itemsizes)} for a plan, not {dtype!r}")
    levels = PRECISIONS[dtype].levels
    if levels and written:
        raise UserError(f"--dtype {dtype}: a network as written has no ops in 8 bits; leave --written out")
    height, width = exact_size(size)
    if levels:
        plan = zoo.load(model, device="cpu", dtype=PRECISIONS[dtype]).compiled_plan()
    else:
        path = zoo.find(model)
        checkpoint = checkpoints.read(path)
        try:
            network = checkpoint.network()
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        plan = build(network) if written else optimise(build(network))
    form = (batch, height, width, itemsizes[dtype])
    title = f"{zoo.title(model)}: {plan.name}{' as written' if written else ''}, {dtype}"
    if figure is not None:
        show.draw(plan, figure, *form, title=title)
        note(f"{figure}: written", as_json)
    if as_json:
        facts = {"model": zoo.title(model), "dtype": dtype, "written": written}
        print(json.dumps(facts | show.to_dict(plan, *form), indent=1))
    else:
        print(show.table(plan, *form, title=title))
