"""Our views and windows beside mmsegmentation's own inference, on the same random weights and images.

In an environment of its own, with torch==2.13.0 mmengine==0.10.7 mmcv-lite==2.1.0 ftfy regex prettytable
scipy matplotlib setuptools opencv-python-headless, and mmsegmentation==1.2.2 without its dependencies:

    python bench/cross_check_mmseg.py dump FOLDER

In this project's: python -m bench.cross_check_mmseg compare FOLDER --out docs/results/cross_check_mmseg.json
"""

from __future__ import annotations

import argparse
import json
import sys
import types
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image

CLASSES = 7
RATIOS = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
SIZES = [(160, 256), (131, 197)]
#: What mmsegmentation is asked to do: its Resize, views or none, its test_cfg. And the same for us.
CASES = {
    "whole": ({}, False, {"mode": "whole"}, {}),
    "scale 0.75": ({"scale_factor": 0.75}, False, {"mode": "whole"}, {"scale": 0.75}),
    "size 192x320": ({"scale": (320, 192)}, False, {"mode": "whole"}, {"size": (192, 320)}),
    "slide": ({}, False, {"mode": "slide", "crop_size": (96, 128), "stride": (64, 85)},
              {"window": (96, 128), "stride": (64, 85)}),
    "slide, scale 1.5": ({"scale_factor": 1.5}, False,
                         {"mode": "slide", "crop_size": (128, 128), "stride": (100, 128)},
                         {"scale": 1.5, "window": (128, 128), "stride": (100, 128)}),
    "ms+flip": ({}, True, {"mode": "whole"}, {"scales": RATIOS, "flip": True}),
    "ms+flip, slide": ({}, True, {"mode": "slide", "crop_size": (96, 128), "stride": (64, 85)},
                       {"scales": RATIOS, "flip": True, "window": (96, 128), "stride": (64, 85)}),
}  # fmt: skip


def picture(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Soft blobs and noise, RGB uint8 ``[H, W, 3]``: textures of all sizes, and no flat parts that tie."""
    total = np.zeros((height, width, 3))
    for cells in (3, 9, 30, 90):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), float)
    return np.clip(total / 4 + rng.normal(0, 8, total.shape), 0, 255).astype(np.uint8)


def _importable() -> None:
    """Stand-ins for the compiled parts of mmcv and for mmdet, which STDC needs none of."""

    def missing(name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (torch.nn.Module,), {})

    parts = ("", ".models", ".models.dense_heads", ".models.utils", ".utils")
    ops = ("", ".point_sample", ".multi_scale_deform_attn")
    for name in (*(f"mmcv.ops{part}" for part in ops), *(f"mmdet{part}" for part in parts)):
        module = types.ModuleType(name)
        module.__getattr__ = missing
        sys.modules.setdefault(name, module)


def dump(folder: Path) -> None:
    """Images, a checkpoint, and what the real package makes of them."""
    _importable()
    import mmseg
    from mmengine.config import Config
    from mmengine.dataset import Compose, pseudo_collate
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    init_default_scope("mmseg")
    root = Path(mmseg.__file__).parent / ".mim/configs/stdc/stdc1_4xb12-80k_cityscapes-512x1024.py"
    config = Config.fromfile(root)
    config.merge_from_dict(
        {"model.backbone.backbone_cfg.init_cfg": None, "model.decode_head.num_classes": CLASSES}
    )
    for part in (config.model.backbone, config.model.backbone.backbone_cfg, config.model.decode_head,
                 *config.model.auxiliary_head):  # fmt: skip
        if "norm_cfg" in part:
            part.norm_cfg = {"type": "BN", "requires_grad": True}
    torch.manual_seed(0)
    model = MODELS.build(config.model).eval()
    model.init_weights()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    model.decode_head.conv_seg.weight.data.normal_(0, 0.5)
    names = [f"thing {i}" for i in range(CLASSES)]
    meta = {"CLASSES": names, "PALETTE": [[i * 30, 255 - i * 30, 90] for i in range(CLASSES)]}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"meta": meta, "state_dict": model.state_dict()}, folder / "model.pth")

    tta = MODELS.build({"type": "SegTTAModel", "module": model})
    load, flips = {"type": "LoadImageFromFile"}, [
        {"type": "RandomFlip", "prob": p, "direction": "horizontal"} for p in (0.0, 1.0)
    ]  # fmt: skip
    resizes = [{"type": "Resize", "scale_factor": r, "keep_ratio": True} for r in RATIOS]
    views = {"type": "TestTimeAug", "transforms": [resizes, flips, [{"type": "PackSegInputs"}]]}
    rng = np.random.default_rng(0)
    results = {}
    for height, width in SIZES:
        name = f"{height}x{width}"
        Image.fromarray(picture(height, width, rng)).save(folder / f"{name}.png")
        for case, (resize, several, test, _) in CASES.items():
            steps = [{"type": "Resize", "keep_ratio": True, **resize}] if resize else []
            steps = [load, views] if several else [load, *steps, {"type": "PackSegInputs"}]
            batch = pseudo_collate([Compose(steps)({"img_path": str(folder / f"{name}.png")})])
            model.test_cfg = config.model.test_cfg.__class__(test)
            with torch.inference_mode():
                (sample,) = (tta if several else model).test_step(batch)
            found = sample.pred_sem_seg.data.squeeze().to(torch.uint8).numpy()
            key = f"{name}/{case}"
            results[f"{key}/labels"] = found
            if several:
                # Of the last view alone: merging does not replace them.
                last = sample.seg_logits.data.argmax(0).numpy()
                results[f"{key}/last"] = np.float64((last == found).mean())
            else:
                results[f"{key}/logits"] = sample.seg_logits.data.numpy()
            seen = batch["inputs"] if several else [batch["inputs"]]
            for i, image in enumerate(seen[::2] if several else seen):
                results[f"{key}/seen{i}"] = image[0].numpy()[::-1].transpose(1, 2, 0)
    np.savez(folder / "results.npz", **results)
    packages = ("mmsegmentation", "mmengine", "mmcv-lite", "opencv-python-headless", "torch")
    (folder / "versions.json").write_text(json.dumps({name: version(name) for name in packages}))


def compare(folder: Path, out: Path) -> None:
    """Labels, logits and resized bytes of ours beside the dumped ones."""
    import stdc_fast
    from stdc_fast.files import write_atomic
    from stdc_fast.inference import label, scores
    from stdc_fast.protocol import Protocol, resize_bytes

    model = stdc_fast.load(folder / "model.pth", backend="eager", dtype="float32", device="cpu")
    results = np.load(folder / "results.npz")
    rows = []
    for height, width in SIZES:
        name = f"{height}x{width}"
        frame = torch.from_numpy(np.array(Image.open(folder / f"{name}.png")))
        for case, (_, several, _, fields) in CASES.items():
            protocol, key = Protocol("mmseg", **fields), f"{name}/{case}"
            sizes = list(dict.fromkeys(view.size for view in protocol.views(height, width, model.input_size)))
            seen = [results[f"{key}/seen{i}"] for i in range(len(sizes))]
            ours = [resize_bytes(frame[None], size)[0].numpy() for size in sizes]
            expected = results[f"{key}/labels"]
            row = {
                "image": name,
                "case": case,
                "seen": [f"{h}x{w}" for h, w in sizes],
                "bytes_of_resized_images_that_differ": sum(
                    int((a != b).sum()) if a.shape == b.shape else a.size
                    for a, b in zip(ours, seen, strict=True)
                ),
                "labels_equal": float((label(model, frame, protocol).numpy() == expected).mean()),
            }
            made = scores(model, frame, protocol)
            if several:
                row["labels_equal_if_logits_were_averaged"] = float(
                    (_mean_of_logits(made) == expected).mean()
                )
                row["labels_equal_of_the_seg_logits_that_it_returns"] = float(results[f"{key}/last"])
            else:
                logits = made.rows(0, height)[0].numpy()
                expected = results[f"{key}/logits"]
                row["largest_logit"] = float(np.abs(expected).max())
                row["logits_differ_by_at_most"] = float(np.abs(logits - expected).max())
            rows.append(row)
            print(row)
    about = {
        "command": "python -m bench.cross_check_mmseg compare FOLDER",
        "theirs": json.loads((folder / "versions.json").read_text()),
        "ours": {"stdc_fast": stdc_fast.__version__, "torch": torch.__version__, "backend": model.backend},
        "least_labels_equal": min(row["labels_equal"] for row in rows),
    }
    text = json.dumps({**about, "rows": rows}, indent=1) + "\n"
    write_atomic(out, lambda path: path.write_text(text))


def _mean_of_logits(made) -> np.ndarray:
    total = sum(view(0, made.size[0]) for view in made._views)
    return total[0].argmax(0).numpy()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("side", choices=("dump", "compare"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, help="where compare writes its JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.side == "dump":
        dump(given.folder)
    elif given.out is None:
        parser.error("compare needs --out")
    else:
        compare(given.folder, given.out)
