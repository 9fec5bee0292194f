"""Write docs/models.md from the records of published weights in stdc_fast/registry.py, and from nothing else.

python -m bench.models_doc
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from bench.words import NONE, table
from stdc_fast import registry
from stdc_fast.files import write_atomic
from stdc_fast.registry import Record, Speed

OUT = Path("docs/models.md")

TEXT = """# Published weights

`python -m bench.models_doc` writes this page from `stdc_fast/registry.py`. Do not edit it.

**We never downloaded any of these files.** There was no network. We know their formats, their publishers'
numbers and, of mmsegmentation's, the first eight digits of the hash. No number on this page was measured
here. A dash means: not published, or not known to us.

    stdc-fast models '*city*'                         # what there is, and what is on this machine
    stdc-fast download stdc1_in1k_cityscapes.mmseg    # fetches, checks, and prints where it is
    stdc-fast predict street.jpg -m stdc1_in1k_cityscapes.mmseg

In Python `stdc_fast.list_models("*city*")`, `stdc_fast.model_info(name)` and
`stdc_fast.load(name, download=True)` do the same. Nothing is downloaded unless asked for. The weights that
come with the package are in the [README](../README.md#weights).

## Names

A name is `NETWORK_DATA.ORIGIN`.

| part | values |
| --- | --- |
| network | `stdc1` or `stdc2`, with `_seg50` or `_seg75` where a publisher has a file for each input scale |
| data | `cityscapes` or `voc12aug`; `in1k_` before it where files with and without ImageNet are published |
| | `in1k` alone is an ImageNet backbone, for `stdc-fast train --backbone` |
| origin | `official`, `mmseg`, `sg` (super-gradients) or `paddle`; embedded weights have none |

## mmsegmentation: with and without ImageNet

Cityscapes val, 500 images, labels at full size, whole images of 1024x2048. "ms+flip" averages over scales and
mirrored images. Training took so much memory on each of four V100 with 12 crops of 512x1024. Speed is
PyTorch's in float32 on a V100, batch 1, 512x1024. The publisher calls it a reference only. The files of
November 2021 have the same memory and speed beside them.

{mmseg}

## All segmentation networks

mIoU is on the val split of the data. "input" is the size at which the network sees the image. "labels" is the
size at which its output is compared. Both are parts of full size. Numbers with other labels cannot be
compared. `load` takes the input scale of this table unless `scale=` or `size=` is given.

{networks}

## Speed, as published

Each number stands with the conditions of its publisher. [benchmarks.md](benchmarks.md) has measurements of
this library beside its peers.

{speeds}

## Backbones

{backbones}

## Files

"published" is an address on the publisher's page. "uncertain" is an address of an older release, which may be
gone. "by hand" is a folder for people with a browser.

{files}

Where no hash is published, the first use records the sha256 of the file beside it, and says so. Later uses
must agree.

## Terms

A licence of code is not one of data. Networks that started from an ImageNet backbone were trained on both.

{terms}

## Notes

{notes}

## Where files are

A file lies at `STDC_FAST_HOME/models/NAME/FILE`. The default of `STDC_FAST_HOME` is the user's cache folder,
`~/.cache/stdc_fast` on Linux. A file that you put there by hand is checked as a download is, before every
use.

- A download goes to `FILE.part`. If it breaks off, the next one goes on there. If the remote file has changed
  meanwhile, it starts again.
- Only one process or thread downloads a file. The others wait for it.
- `STDC_FAST_MIRROR` has base addresses, with spaces between, that are tried first. A mirror is a copy of the
  folder `models` behind any web server. It can also have the files that only people can fetch elsewhere.
- `STDC_FAST_OFFLINE=1` forbids downloads.
- Every refusal says which file to put where.
"""


def percent(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.2f}"


def part(scale: float | None) -> str:
    return NONE if scale is None else f"{scale:g}"


def speed(found: Speed) -> str:
    return f"{found.fps:g} FPS" if found.fps is not None else f"{found.milliseconds:g} ms"


def code(name: str) -> str:
    return f"`{name}`"


def how(record: Record) -> tuple[str, str]:
    """How to come by a file, and where it is."""
    if not record.urls:
        return "by hand", record.page
    return "uncertain" if record.uncertain else "published", record.urls[0]


def mmseg_table(records: Iterable[Record]) -> str:
    rows = [
        (
            r.variant.upper(), r.pretrained or "no", percent(r.miou), percent(r.miou_ms_flip),
            NONE if r.memory_gb is None else f"{r.memory_gb:.2f}",
            NONE if not r.speed else f"{r.speed[0].fps:.2f}", code(r.name),
        )
        for r in records if r.publisher == "mmsegmentation"
    ]  # fmt: skip
    head = ("network", "pretrained", "mIoU %", "ms+flip %", "memory, GB", "FPS", "name")
    return table(head, rows, "..rrrr.")


def notes(records: Iterable[Record]) -> Iterable[str]:
    """Each note once, with the names that it is about."""
    about: dict[str, list[str]] = {}
    for record in records:
        for note in record.notes:
            about.setdefault(note, []).append(code(record.name))
    return (f"| {note} | {', '.join(names)} |" for note, names in about.items())


def text() -> str:
    """The document."""
    records = list(registry.RECORDS.values())
    networks = [r for r in records if r.task == registry.SEGMENTATION]
    backbones = [r for r in records if r.task == registry.BACKBONE]
    return TEXT.format(
        mmseg=mmseg_table(networks),
        networks=table(
            ("name", "data", "pretrained", "mIoU %", "flip %", "ms+flip %", "input", "labels", "training"),
            [
                (
                    code(r.name),
                    r.dataset,
                    r.pretrained or "no",
                    percent(r.miou),
                    percent(r.miou_flip),
                    percent(r.miou_ms_flip),
                    part(r.scale),
                    part(r.label_scale),
                    r.training or NONE,
                )
                for r in networks
            ],
            "...rrrrr.",
        ),
        speeds=table(
            ("name", "speed", "conditions"),
            [(code(r.name), speed(s), s.conditions) for r in networks for s in r.speed],
            ".r.",
        ),
        backbones=table(
            ("name", "top-1 %", "file"),
            [(code(r.name), percent(r.top1), code(r.file)) for r in backbones],
            ".r.",
        ),
        files=table(
            ("name", "file", "sha256 starts with", "", "from"),
            [(code(r.name), code(r.file), code(r.sha256) if r.sha256 else NONE, *how(r)) for r in records],
        ),
        terms=table(
            ("publisher", "licence of the code", "weights"),
            dict.fromkeys((r.publisher, r.code_licence, r.terms) for r in records),
        ),
        notes="\n".join(("| note | about |", "| --- | --- |", *notes(records))),
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.models_doc", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    found = text()
    write_atomic(options.out, lambda path: path.write_text(found))
    print(options.out, file=sys.stderr)


if __name__ == "__main__":
    main()
