"""Reads a folder of real checkpoints and compares with the answers beside them.

    python -m bench.check_checkpoints DIR [--out FILE.jsonl]

``bench/real_checkpoints`` makes the folder. Each FILE with FILE.json is read with the stated arguments, and
its outputs are compared in float64 with those in FILE.npz. That gives one record a file, and one row of the
table on standard output.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import traceback
from pathlib import Path

import numpy as np
import torch

from stdc_fast import checkpoints
from stdc_fast.errors import UserError
from stdc_fast.files import write_atomic
from stdc_fast.reference.networks import STDCBackbone

#: Largest difference over largest value that float64 arithmetic in another order may give.
LIMIT = 1e-12


def relative_error(found: np.ndarray, true: np.ndarray) -> float:
    if found.shape != true.shape:
        return float("inf")
    return float(np.abs(found - true).max() / np.abs(true).max())


def of_network(path: Path, truth: dict, arrays: dict[str, np.ndarray]) -> dict[str, object]:
    """What the segmentation checkpoint gives: tensors, relative error, names."""
    known = inspect.signature(checkpoints.read).parameters
    unknown = [name for name in truth["load"] if name not in known]
    given = {name: value for name, value in truth["load"].items() if name in known}
    checkpoint = checkpoints.read(path, **given)
    network = checkpoint.network(torch.float64)
    with torch.inference_mode():
        logits = network(torch.from_numpy(arrays["x"]).double()).numpy()
    stride = int(arrays["stride"])
    metadata = checkpoint.metadata
    classes, palette = (metadata.get(k) for k in ("classes", "palette"))
    return {
        "tensors": len(checkpoint.state),
        "error": relative_error(logits[:, :, ::stride, ::stride], arrays["logits"]),
        "names_kept": None if truth["classes"] is None else list(classes or []) == truth["classes"],
        "palette_kept": None
        if truth["palette"] is None
        else [list(c) for c in palette or []] == truth["palette"],
        "arguments_unknown": unknown,
        "report": checkpoint.report,
    }


def of_backbone(path: Path, truth: dict, arrays: dict[str, np.ndarray]) -> dict[str, object]:
    """The same of a backbone, whose outputs are the features at 1/8, 1/16 and 1/32."""
    state = checkpoints.read_backbone(path)
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    variant = "stdc2" if any(k.startswith("features.13.") for k in state) else "stdc1"
    network = STDCBackbone(variant, count_include_pad=truth["family"] != "paddle").double().eval()
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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, help="records, one JSON object a line")
    parser.add_argument("--only", default="", help="a part of the files' names")
    options = parser.parse_args(arguments)
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
