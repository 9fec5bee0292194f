"""``stdc-fast models`` and ``stdc-fast download``: weights by name, and fetching published ones."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from stdc_fast.cli.options import Json, Quiet
from stdc_fast.errors import UserError


def models(
    pattern: Annotated[str, typer.Argument(help="Names to list, for example '*city*'.")] = "*",
    backbones: Annotated[bool, typer.Option("--backbones", help="ImageNet backbones too.")] = False,
    as_json: Json = False,
) -> None:
    """Names of weights, and whether each is on this machine.

    embedded: in the package. cached: its file is here. download: stdc-fast download NAME fetches it.
    uncertain: its addresses may be gone. manual: fetched by hand only.

    Examples: stdc-fast models; stdc-fast models 'stdc2*' --backbones --json
    """
    from stdc_fast import zoo

    found = [zoo.model_info(name) for name in zoo.list_models(pattern, backbones=backbones)]
    if not found:
        hint = "" if backbones else "add --backbones, or "
        raise UserError(f"no model is called {pattern!r}; {hint}{zoo.nearest(pattern)}")
    if as_json:
        print(json.dumps(found, indent=1))
        return
    print(f"{'name':<32} {'status':<9} {'network':<7} {'mIoU':>7} {'ms+flip':>7}  measured on")
    for facts in found:
        scores = [_percent(facts.get(key)) for key in ("miou", "miou_ms_flip")]
        print(
            f"{facts['name']:<32} {facts['status']:<9} {facts['variant']:<7} {scores[0]:>7} {scores[1]:>7}  "
            f"{facts.get('miou_split') or '-'}"
        )


def download(
    name: Annotated[str, typer.Argument(metavar="NAME", help="One that `stdc-fast models` lists.")],
    quiet: Quiet = False,
) -> None:
    """Fetch published weights, check them, and print where they are.

    A download that broke off goes on where it was. STDC_FAST_HOME is the folder, STDC_FAST_MIRROR has
    addresses to try first, and STDC_FAST_OFFLINE=1 forbids all of it.

    Example: stdc-fast download stdc1_in1k_cityscapes.mmseg
    """
    from stdc_fast import download, registry, zoo

    record = registry.RECORDS.get(name)
    if record is None:
        if name in zoo.list_models(status="embedded"):
            print(f"{name} comes with the package: {zoo.find(name)}")
            return
        raise UserError(f"unknown model {name!r}; {zoo.nearest(name)}")
    path = download.fetch(record, quiet)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, sha256 {download.check(record, path)}")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"
