"""The card and ``config.json`` of a model on the Hugging Face Hub: what its weights say of themselves.

Nothing is added to that: what they do not say is written as unknown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from stdc_fast.reference.networks import STDCSeg
from stdc_fast.version import __version__

#: Names of this library on the Hub.
LIBRARY = "stdc-fast"
UNKNOWN = "unknown"
# The Hub's identifiers of licences, by how terms begin; https://huggingface.co/docs/hub/repositories-licenses
_LICENCES = {
    "apache-2.0": "apache-2.0", "mit": "mit", "bsd-3-clause": "bsd-3-clause", "cc0": "cc0-1.0",
    "cc by-nc-sa 4.0": "cc-by-nc-sa-4.0", "cc by-nc 4.0": "cc-by-nc-4.0", "cc by-sa 4.0": "cc-by-sa-4.0",
    "cc by 4.0": "cc-by-4.0",
}  # fmt: skip
# Data sets that sources name.
_DATA_SETS = ("CamVid", "Cityscapes", "Pascal VOC", "ImageNet")


def config(facts: Mapping[str, object], network: STDCSeg) -> dict[str, object]:
    """``config.json``: metadata as :func:`stdc_fast.load` builds on them, under the Hub's names."""
    names = facts.get("classes") or [f"class {i}" for i in range(network.num_classes)]
    return {
        "library_name": LIBRARY,
        "library_version": __version__,
        "architectures": ["STDCSeg"],
        "model_type": network.variant,
        "num_labels": network.num_classes,
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        "palette": facts.get("palette"),
        "image_mean": list(network.mean),
        "image_std": list(network.std),
        "short_side": facts.get("short_side"),
        "scale": facts.get("scale", 1.0),
        "align_corners": network.align_corners,
    }


def text(facts: Mapping[str, object], network: STDCSeg, repository: str) -> str:
    """``README.md`` of a repository."""
    return "\n".join([*_front(facts), *_body(facts, network, repository)]) + "\n"


def _front(facts: Mapping[str, object]) -> list[str]:
    """The YAML that the Hub reads. Strings are those of JSON, which YAML has too."""
    terms, named = facts.get("terms"), _data_sets(facts)
    licence = _licence(terms)
    lines = ["---", f"library_name: {LIBRARY}", f"license: {licence}"]
    if licence == "other":
        lines.append(f"license_name: {_slug(str(terms))[:60].strip('-') or UNKNOWN}")
    lines += ["pipeline_tag: image-segmentation", "tags:"]
    lines += [f"- {tag}" for tag in ("semantic-segmentation", "real-time", "stdc-seg", facts["variant"])]
    if named:
        lines += ["datasets:", *(f"- {_slug(name)}" for name in named)]
    if (miou := facts.get("miou")) is not None:
        split = str(facts.get("miou_split") or UNKNOWN)
        lines += [
            "metrics:", "- mean_iou",
            "model-index:", f"- name: {facts['variant']}", "  results:",
            "  - task:", "      type: image-segmentation",
            "    dataset:", f"      type: {_slug(named[0]) if named else UNKNOWN}",
            f"      name: {json.dumps(split, ensure_ascii=False)}",
            "    metrics:", "    - type: mean_iou", f"      value: {json.dumps(miou)}", "      name: mIoU",
        ]  # fmt: skip
    return [*lines, "---", ""]


def _body(facts: Mapping[str, object], network: STDCSeg, repository: str) -> list[str]:
    classes, palette = facts.get("classes") or [], facts.get("palette") or []
    side, scale = facts.get("short_side"), facts.get("scale", 1.0)
    size = (
        f"the image is resized until its shorter side has {side} pixels" if side
        else "the image at its own size" if scale == 1.0
        else f"the image is resized by {scale}"
    )  # fmt: skip
    variant = {"stdc1": "STDC1-Seg", "stdc2": "STDC2-Seg"}[network.variant]
    said = [
        ("mean IoU", _measured(facts)),
        ("terms of the weights", facts.get("terms")),
        ("trained on", facts.get("source")),
        ("backbone started from", facts.get("backbone")),
        ("iterations", facts.get("iteration")),
        ("commit of the training code", facts.get("commit")),
        ("torch of the training", facts.get("torch")),
    ]
    lines = [
        f"# {variant}, {network.num_classes} classes", "",
        f"{variant} labels every pixel of an image with one of {network.num_classes} classes. It is the "
        'network of "Rethinking BiSeNet For Real-time Semantic Segmentation", CVPR 2021, '
        "[arXiv 2104.13188](https://arxiv.org/abs/2104.13188). This card was written by "
        f"stdc-fast {__version__} from the metadata of the weights.", "",
        "## Use", "", "```python", "import stdc_fast", "",
        f'model = stdc_fast.Segmenter.from_pretrained("{repository}")  # pip install "stdc-fast[hub]"',
        'model.predict("street.jpg").overlay().save("overlay.png")', "```", "",
        f"Input: RGB, {size}; normalised by mean {list(network.mean)} and deviation {list(network.std)} of "
        "0..1. Output: logits of each class, and labels at the size of the image.", "",
        "## Facts", "", "| | |", "| --- | --- |",
        *(f"| {name} | {_cell(value)} |" for name, value in said), "",
        "## Classes", "", "| id | name | colour |", "| ---: | --- | --- |",
    ]  # fmt: skip
    for i, name in enumerate(classes):
        colour = "#{:02x}{:02x}{:02x}".format(*palette[i]) if palette else UNKNOWN
        lines.append(f"| {i} | {_cell(name)} | {colour} |")
    if (recipe := facts.get("recipe")) is not None:
        known = recipe.items() if isinstance(recipe, Mapping) else [("recipe", recipe)]
        settings = (f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in known)
        lines += ["", "## Training", "", "```yaml", *settings, "```"]
    lines += [
        "", "## Intended use and limits", "",
        "Semantic segmentation of images like those that the weights were trained on. The weights say "
        "nothing of other scenes, cameras, light or countries: accuracy there is unknown, and has to be "
        "measured before use. Each pixel gets one of the classes above, also where none of them is right.",
    ]  # fmt: skip
    return lines


def _licence(terms: object) -> str:
    """The Hub's identifier of terms: "other" for what it has no name of."""
    if not terms:
        return UNKNOWN
    return next((name for start, name in _LICENCES.items() if str(terms).lower().startswith(start)), "other")


def _data_sets(facts: Mapping[str, object]) -> list[str]:
    """Those that the source names, of weights as they are now."""
    source = str(facts.get("source") or "").lower()
    return [name for name in _DATA_SETS if name.lower() in source]


def _measured(facts: Mapping[str, object]) -> str | None:
    miou = facts.get("miou")
    return None if miou is None else f"{100 * miou:.2f} %, on {facts.get('miou_split') or UNKNOWN}"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _cell(value: object) -> str:
    """A value in a table of Markdown."""
    if value is None or value == "":
        return UNKNOWN
    plain = value if isinstance(value, (str, int, float)) else json.dumps(value, ensure_ascii=False)
    return re.sub(r"([|<>`\\])", r"\\\1", " ".join(str(plain).split()))
