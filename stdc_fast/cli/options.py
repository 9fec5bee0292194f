"""Options that several commands have, how sizes are read, and what goes to stderr."""

from __future__ import annotations

import json
import logging
import re
import sys
from typing import Annotated, Optional

import typer

from stdc_fast.errors import UserError
from stdc_fast.precision import PRECISIONS

Model = Annotated[str, typer.Option("--model", "-m", help="Name (stdc-fast models) or checkpoint file.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, or a GPU's number.")]
Dtype = Annotated[str, typer.Option(help=f"auto, {', '.join(PRECISIONS)}.")]
Backend = Annotated[str, typer.Option(help="auto or one that `stdc-fast info` lists.")]
Memory = Annotated[str, typer.Option(help="fast, or small: fewer weights, longer times, on CPUs.")]
Scale = Annotated[Optional[float], typer.Option(help="Resize the image by this factor for the network.")]
Size = Annotated[
    Optional[str], typer.Option(help="HEIGHTxWIDTH for the network, or native. Default: the weights' own.")
]
Range = Annotated[
    Optional[str],
    typer.Option("--range", metavar="BLACK,WHITE", help="Values in files of more than 8 bits, e.g. 0,4095."),
]
Option = Annotated[
    Optional[list[str]],
    typer.Option(metavar="KEY=VALUE", help="What the file does not say of its network, e.g. conv_last=true."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar and no remarks.")]


def pairs(items: list[str] | None, option: str) -> dict[str, object]:
    """KEY=VALUE items as a dict; values that are JSON are read as such. UserError for another form."""
    found: dict[str, object] = {}
    for item in items or []:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise UserError(f"{option} must be KEY=VALUE, not {item!r}")
        try:
            found[key] = json.loads(value)
        except json.JSONDecodeError:
            found[key] = {"True": True, "False": False}.get(value, value)
    return found


def exact_size(text: str) -> tuple[int, int]:
    """``--size`` as (H, W). UserError unless the network can have an input of that size."""
    from stdc_fast import images

    if text == "native":
        raise UserError("--size must be HEIGHTxWIDTH here, for example 512x1024, not 'native'")
    height, width = parse_size(text)
    if not images.is_possible(height, width):
        raise UserError(f"--size {text}: {images.LIMITS}; choose another size")
    return height, width


def parse_size(text: str | None, option: str = "--size") -> str | tuple[int, int] | None:
    """HEIGHTxWIDTH as (H, W), None as None; ``--size`` may also be "native". UserError otherwise."""
    if text is None or (text == "native" and option == "--size"):
        return text
    height, _, width = text.lower().partition("x")
    if not (re.fullmatch(r"[0-9]{1,9}", height) and re.fullmatch(r"[0-9]{1,9}", width)):
        raise UserError(f"{option} must be HEIGHTxWIDTH, for example 512x1024, not {text!r}")
    return int(height), int(width)


def parse_range(text: str | None) -> tuple[float, float] | None:
    """BLACK,WHITE as two numbers, None as None. UserError otherwise."""
    from stdc_fast.samples import check_range

    try:
        return None if text is None else check_range([float(value) for value in text.split(",")])
    except ValueError:
        raise UserError(f"--range must be BLACK,WHITE, for example 0,4095, not {text!r}") from None


def note(text: str, quiet: bool) -> None:
    """A line on stderr."""
    if not quiet:
        print(text, file=sys.stderr)


def remark(text: str, quiet: bool) -> None:
    """A line on stderr for somebody who watches."""
    note(text, quiet or not sys.stderr.isatty())


def progress(items, what: str, quiet: bool, show: bool = True, total: int | None = None):
    """The items, ``total`` where they do not say how many, with a progress bar on stderr."""
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    # A generator, so that the bar appears with the first item: an error before it has its own line.
    # None: not where nobody watches, as in a log file.
    with logging_redirect_tqdm([logging.getLogger("stdc_fast")]):  # lines above the bar, not in it
        yield from tqdm(items, what, unit="img", total=total, disable=quiet or not show or None)
