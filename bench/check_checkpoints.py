"""Reads a folder of real checkpoints and compares with the answers beside them.

    python -m bench.check_checkpoints DIR --out docs/results/checkpoints.jsonl
    python -m bench.check_checkpoints --document

``bench/real_checkpoints`` makes the folder. Each FILE with FILE.json is read with the stated arguments, and
its outputs are compared in float64 with those in FILE.npz. That gives one record a file, and one row of the
table on standard output. ``--document`` writes the summary of the records into docs/checkpoints.md.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import traceback
from pathlib import Path

import numpy as np
import torch

import stdc_fast
from stdc_fast import checkpoints
from stdc_fast.errors import UserError
from stdc_fast.files import write_atomic
from stdc_fast.reference.networks import STDCBackbone

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT, RECORDS = ROOT / "docs" / "checkpoints.md", ROOT / "docs" / "results" / "checkpoints.jsonl"
BEGIN, END = "<!-- written by bench.check_checkpoints -->\n", "<!-- end of what it wrote -->\n"
#: Largest difference over largest value that float64 arithmetic in another order may give.
LIMIT = 1e-12
#: PaddlePaddle's kernels hold 1e-5 in single precision, also where the network is in double precision.
EPSILON = float(np.float32(1e-5))


def relative_error(found: np.ndarray, true: np.ndarray) -> float:
    if found.shape != true.shape:
        return float("inf")
    return float(np.abs(found - true).max() / np.abs(true).max())


def of_network(path: Path, truth: dict, arrays: dict[str, np.ndarray]) -> dict[str, object]:
    """What the segmentation checkpoint gives: tensors, relative error, names."""
    paddle = truth["family"] == "paddle"
    given = truth["load"] | ({"eps": EPSILON} if paddle else {})
    checkpoint = checkpoints.read(path, **given)
    network = checkpoint.network(torch.float64)
    x = torch.from_numpy(arrays["x"]).double()
    if "reads BGR" in checkpoint.report:
        x = x.flip(1)
    with torch.inference_mode():
        # Its interpolation has coordinates in single precision, so that logits are compared before it.
        logits = (network.logits8(x) if paddle else network(x)).numpy()
    true, stride = (arrays["low"], 1) if paddle else (arrays["logits"], int(arrays["stride"]))
    if checkpoint.metadata.get("threshold") is not None:
        logits = logits[:, 1:]  # the first is the threshold
    metadata = checkpoint.metadata
    classes, palette = (metadata.get(k) for k in ("classes", "palette"))
    return {
        "tensors": len(checkpoint.state),
        "error": relative_error(logits[:, :, ::stride, ::stride], true),
        "labels": of_photo(path, truth, arrays) if "image_labels" in arrays else None,
        "names_kept": None if truth["classes"] is None else list(classes or []) == truth["classes"],
        "palette_kept": None
        if truth["palette"] is None
        else [list(c) for c in palette or []] == truth["palette"],
        "report": checkpoint.report,
    }


def of_photo(path: Path, truth: dict, arrays: dict[str, np.ndarray]) -> float:
    """Share of a picture's labels, through everything that ``load`` sets up, which are the real model's."""
    model = stdc_fast.load(path, device="cpu", dtype="float64", backend="eager", **truth["load"])
    return float((model.predict(arrays["image"]).labels == arrays["image_labels"]).mean())


def of_backbone(path: Path, truth: dict, arrays: dict[str, np.ndarray]) -> dict[str, object]:
    """The same of a backbone, whose outputs are the features at 1/8, 1/16 and 1/32."""
    state = checkpoints.read_backbone(path)
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    variant = "stdc2" if any(k.startswith("features.13.") for k in state) else "stdc1"
    paddle = truth["family"] == "paddle"
    network = STDCBackbone(variant, count_include_pad=not paddle).double().eval()
    for norm in network.modules():
        if paddle and isinstance(norm, torch.nn.BatchNorm2d):
            norm.eps = EPSILON
    strange = network.load_state_dict(state, strict=False)
    missing = [k for k in strange.missing_keys if not k.endswith("num_batches_tracked")]
    if missing or strange.unexpected_keys:
        raise UserError(f"backbone lacks {missing[:3]} and has {strange.unexpected_keys[:3]}")
    with torch.inference_mode():
        features = network(torch.from_numpy(arrays["x"]).double())[2:]
    errors = [
        relative_error(f.numpy(), arrays[f"features{s}"]) for s, f in zip((8, 16, 32), features, strict=True)
    ]
    return {"tensors": len(state), "error": max(errors)}


def check(path: Path) -> dict[str, object]:
    """The record of one file, with ``ok`` and, where it is not, what is wrong."""
    truth = json.loads(Path(f"{path}.json").read_text())
    record = {
        "file": path.name,
        **{k: truth[k] for k in ("family", "packages", "made", "kind", "expect", "why")},
        "true_tensors": truth["tensors"],
    }
    answers = Path(f"{path}.npz")
    arrays = dict(np.load(answers)) if answers.exists() else None
    read = of_backbone if truth["kind"] == "backbone" else of_network
    try:
        found = read(path, truth, arrays) if arrays is not None else {"report": checkpoints.read(path).report}
    except UserError as error:
        refusal = str(error).replace(str(path), path.name)
        return {**record, "refused": refusal, "ok": truth["expect"] != "load"}
    except Exception as error:  # a traceback is what a user must never see
        return {**record, "raised": traceback.format_exception_only(error)[-1].split("\n")[0], "ok": False}
    right = arrays is not None and found["error"] <= LIMIT
    right = right and (found.get("labels") is None or found["labels"] >= 0.9999)
    kept = found.get("names_kept") is not False and found.get("palette_kept") is not False
    return {**record, **found, "ok": truth["expect"] != "refuse" and right and kept}


def table(records: list[dict]) -> str:
    """One Markdown row a file."""
    rows = ["| file | family | how made | tensors mapped | relative error | names kept | as expected |"]
    rows.append("| --- | --- | --- | --- | --- | --- | --- |")
    for r in records:
        kept = {None: "none in it", True: "yes", False: "no"}[r.get("names_kept")]
        if "error" in r:
            middle = f"{r['tensors']} of {r['true_tensors']} | {r['error']:.1e} | {kept}"
        else:
            said = r.get("refused") or r.get("raised") or r.get("report", "")
            middle = (
                f"{'refused' if 'refused' in r else 'raised' if 'raised' in r else 'loaded'} | | {said[:160]}"
            )
        packages = ", ".join(f"{k} {v}" for k, v in list(r["packages"].items())[:1])
        start = f"| {r['file']} | {r['family']} | {packages}: {r['made']}"
        cells = f"{start} | {middle} | {'yes' if r['ok'] else 'NO'} |"
        rows.append(cells.replace("\n", " "))
    return "\n".join(rows)


def _mapped(record: dict) -> int:
    """Tensors that became the network's, those included that became part of others."""
    folded = re.search(r"(\d+) biases became", record.get("report", ""))
    mapped = record["tensors"] + (int(folded[1]) if folded else 0)
    if record["ok"] and mapped != record["true_tensors"]:
        raise ValueError(f"{record['file']}: {mapped} of {record['true_tensors']} tensors")
    return mapped


def summary(records: list[dict]) -> str:
    """One Markdown row for what one package wrote to be loaded, or to be refused."""
    heads = (
        "family",
        "written by",
        "files",
        "right",
        "tensors mapped",
        "largest relative error",
        "names kept",
    )
    rows = [f"| {' | '.join(heads)} |"]
    rows.append("| --- | --- | ---: | ---: | --- | --- | --- |")
    groups: dict[tuple, list[dict]] = {}
    for r in records:
        packages = ", ".join(f"{k} {v}" for k, v in list(r["packages"].items())[:2])
        what = {"load": r["kind"], "refuse": "to be refused", "either": "to be refused or exact"}[r["expect"]]
        groups.setdefault((r["family"], packages, what), []).append(r)
    for (family, packages, what), group in groups.items():
        read = [r for r in group if "error" in r]
        mapped = ", ".join(map(str, sorted({_mapped(r) for r in read}))) or "-"
        error = f"{max(r['error'] for r in read):.1e}" if read else "-"
        named = [r for r in read if r.get("names_kept") is not None]
        kept = f"{sum(r['names_kept'] for r in named)} of {len(named)}" if named else "none in them"
        right = sum(r["ok"] for r in group)
        name = "none" if family == "none" else f"{family}, {what}"
        cells = (name, packages, len(group), right, mapped, error, kept if read else "-")
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows) + "\n"


def written(text: str) -> str:
    """The document with the summary of the records of now."""
    records = [json.loads(line) for line in RECORDS.read_text().splitlines()]
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n{summary(records)}\n{END}{rest.split(END)[1]}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--document", action="store_true", help="write the summary into the document")
    parser.add_argument("--out", type=Path, help="records, one JSON object a line")
    parser.add_argument("--only", default="", help="a part of the files' names")
    options = parser.parse_args(arguments)
    if options.document:
        write_atomic(DOCUMENT, lambda place: Path(place).write_text(written(DOCUMENT.read_text())))
        return 0
    if options.folder is None:
        parser.error("give the folder that bench/real_checkpoints/run.sh made, or --document")
    answers = sorted(p for p in options.folder.rglob("*.json") if options.only in p.name)
    records = []
    for answer in answers:
        path = answer.with_suffix("")
        if path.exists():
            records.append(check(path))
            r = records[-1]
            print(r["file"], "ok" if r["ok"] else "NOT OK", r.get("error", ""), file=sys.stderr, flush=True)
    if options.out:
        text = "".join(f"{json.dumps(r)}\n" for r in records)
        write_atomic(options.out, lambda place: Path(place).write_text(text))
    print(table(records))
    print(f"\n{sum(r['ok'] for r in records)} of {len(records)} as expected")
    return 0 if all(r["ok"] for r in records) else 1


if __name__ == "__main__":
    sys.exit(main())
