"""``stdc-fast info``: this machine, the backends and the models; with ``--plan`` one network op by op."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Optional

import typer

from stdc_fast.cli.options import Json
from stdc_fast.cli.plan import print_plan
from stdc_fast.errors import UserError


def info(
    as_json: Json = False,
    plan: Annotated[
        Optional[str],
        typer.Option(metavar="MODEL", help="Show how this embedded name or checkpoint file is computed."),
    ] = None,
    size: Annotated[
        Optional[str], typer.Option(help="With --plan: HEIGHTxWIDTH of the input. Default: 512x1024.")
    ] = None,
    batch: Annotated[
        Optional[int], typer.Option(min=1, max=1024, help="With --plan: images at a time. Default: 1.")
    ] = None,
    dtype: Annotated[
        Optional[str], typer.Option(help="With --plan: of maps and weights. Default: float32.")
    ] = None,
    written: Annotated[
        bool, typer.Option("--written", help="With --plan: the network as written, before all rewrites.")
    ] = False,
    draw: Annotated[
        Optional[Path], typer.Option(help="With --plan: write a figure, .svg or .png.", metavar="FILE")
    ] = None,
) -> None:
    """Versions, processor, GPUs, backends (and why each is or is not available), models.

    With --plan what a network computes, op by op: shapes, multiply-adds, bytes moved, memory.

    Example: stdc-fast info --plan stdc1_camvid --size 720x960 --draw plan.svg
    """
    if plan is not None:
        print_plan(plan, size, batch or 1, dtype, written, draw, as_json)
        return
    given = {"size": size, "batch": batch, "dtype": dtype, "written": written or None, "draw": draw}
    for option in (name for name, value in given.items() if value is not None):
        raise UserError(f"--{option} is about a plan; add --plan MODEL, for example --plan stdc1_camvid")
    from stdc_fast import info as facts

    found = facts.collect()
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for name, version in found["versions"].items():
        print(f"{name:<12} {version or 'not installed'}")
    cpu = found["cpu"]
    print(f"{'cpu':<12} {cpu['model']}, {cpu['cores']} cores, {cpu['threads']} threads")
    print(f"{'':<12} {' '.join(cpu['features']) or 'no vector extensions known to matter'}")
    for gpu in found["gpus"]:
        about = f"compute {gpu['capability']}, {gpu['processors']} processors, {gpu['memory_gib']} GiB"
        print(f"{'gpu':<12} {gpu['name']}, {about}")
        print(f"{'':<12} class {gpu['class']}" + (f"; {gpu['cuda']}" if "cuda" in gpu else ""))
    if not found["gpus"]:
        print(f"{'gpu':<12} none that torch sees")
    native = found["native"]
    print(f"{'native':<12} {'module' if native['available'] else 'none:'} {native['reason']}")
    for name, reason in native["build"].get("skipped", {}).items():
        print(f"{'':<12} without {name}: {reason}")
    for status in found["backends"]:
        mark = "yes" if status["available"] else "no"
        chosen = " (default)" if status["name"] == found["default_backend"] else ""
        print(f"{'backend':<12} {status['name']:<7} {mark:<3} {status['reason']}{chosen}")
    if found["default_choice"]:
        print(f"{'choice':<12} {found['default_backend']}: {found['default_choice']}")
    if found["default_backend"].startswith("none"):
        print(f"{'backend':<12} default {found['default_backend']}")
    dtype = found["default_dtype"]
    print(f"{'dtype':<12} {dtype['name']} (default): {dtype['reason']}")
    if (reason := found["default_memory"]["reason"]) is not None:
        print(f"{'memory':<12} fast (default): {reason}")
    for model in found["models"]:
        score = f"mIoU {model['miou']:.2%} ({model['miou_split']})" if model["miou"] else ""
        print(f"{'model':<12} {model['name']}: {model['variant']}, {score}")
