"""mmsegmentation 0.30.0: python mmseg0.py OUT

Training checkpoints by mmcv 1.7.2's runners, as tools/train.py starts them. mmcv has no compiled operators.
"""

from __future__ import annotations

import shutil
import sys
import types
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
import corpus
import numpy as np
import torch
from PIL import Image

sys.modules.setdefault("torchvision", types.ModuleType("torchvision")).__version__ = "none"
corpus.stub("mmcv.ops", "mmcv.ops.point_sample", "mmcv.ops.multi_scale_deform_attn")
import mmseg
from mmcv import Config
from mmcv.cnn.utils import revert_sync_batchnorm
from mmseg.apis import train_segmentor
from mmseg.datasets import build_dataset
from mmseg.models import build_segmentor
from mmseg.utils import collect_env

PACKAGES = corpus.versions("mmsegmentation", "mmcv", "torch", "numpy")
CLASSES = [f"thing {i}" for i in range(7)]
PALETTE = [[i * 30, 255 - i * 30, 90] for i in range(7)]


def data_of(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for part in ("img", "ann"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for i in range(4):
        Image.fromarray(rng.integers(0, 255, (96, 160, 3), dtype=np.uint8)).save(folder / f"img/{i}.png")
        Image.fromarray(rng.integers(0, 7, (96, 160), dtype=np.uint8)).save(folder / f"ann/{i}.png")


def config(arch: str, data: Path, work: Path, classes, palette) -> Config:
    """The library's own config of STDC, for one small iteration on the CPU."""
    place = Path(mmseg.__file__).parent / f".mim/configs/stdc/{arch}_512x1024_80k_cityscapes.py"
    cfg = Config.fromfile(str(place))
    cfg.device, cfg.gpu_ids, cfg.seed = "cpu", [0], 0
    cfg.work_dir = str(work)
    cfg.runner = dict(type="IterBasedRunner", max_iters=1)
    cfg.checkpoint_config = dict(by_epoch=False, interval=1)
    scale, mean = dict(type="Resize", img_scale=(160, 96), ratio_range=(1.0, 1.0)), cfg.img_norm_cfg
    steps = [
        dict(type="LoadImageFromFile"),
        dict(type="LoadAnnotations"),
        scale,
        dict(type="RandomCrop", crop_size=(64, 128)),
        dict(type="RandomFlip", prob=0.5),
        dict(type="Normalize", **mean),
        dict(type="DefaultFormatBundle"),
        dict(type="Collect", keys=["img", "gt_semantic_seg"]),
    ]
    pictures = dict(
        type="CustomDataset",
        data_root=str(data),
        img_dir="img",
        ann_dir="ann",
        img_suffix=".png",
        seg_map_suffix=".png",
        classes=classes,
        palette=palette,
        pipeline=steps,
    )
    cfg.data = dict(samples_per_gpu=2, workers_per_gpu=0, train=pictures, val=pictures, test=pictures)
    cfg.data["train_dataloader"] = dict(persistent_workers=False)
    for head in (cfg.model.decode_head, *cfg.model.auxiliary_head[:2]):
        head.num_classes = 7
    return cfg


def train(out: Path, name: str, cfg: Config) -> None:
    """As tools/train.py of the library does it after its arguments are read."""
    info = "\n".join(f"{k}: {v}" for k, v in collect_env().items())
    meta = dict(env_info=info, config=cfg.pretty_text, seed=0, exp_name=f"{name}.py")
    model = revert_sync_batchnorm(build_segmentor(cfg.model))
    datasets = [build_dataset(cfg.data.train)]
    cfg.checkpoint_config.meta = dict(
        mmseg_version=f"{mmseg.__version__}+unknown",
        config=cfg.pretty_text,
        CLASSES=datasets[0].CLASSES,
        PALETTE=datasets[0].PALETTE,
    )
    model.CLASSES = datasets[0].CLASSES
    meta.update(cfg.checkpoint_config.meta)
    corpus.randomise(model)
    train_segmentor(model, datasets, cfg, distributed=False, validate=False, timestamp="now", meta=meta)
    path = out / f"{name}.iter_1.pth"
    Path(cfg.work_dir, "iter_1.pth").rename(path)
    describe(path, cfg, "mmcv.runner.IterBasedRunner, by the lines of tools/train.py")
    shutil.rmtree(cfg.work_dir)


def describe(path: Path, cfg: Config, made: str) -> None:
    raw = torch.load(path, map_location="cpu", weights_only=False)
    network = revert_sync_batchnorm(build_segmentor(cfg.model)).double().eval()
    network.load_state_dict(raw["state_dict"])
    meta = raw["meta"]
    x = corpus.picture(120, 250)
    y = torch.from_numpy(x).double()
    size = dict(ori_shape=(120, 250, 3), img_shape=(120, 250, 3), pad_shape=(120, 250, 3), flip=False)
    with torch.inference_mode():
        low = network.decode_head.forward_test(network.extract_feat(y), [size], None)
        full = network.encode_decode(y, [size])
    palette = meta.get("PALETTE")
    used = [k for k in raw["state_dict"] if not k.startswith("auxiliary_head.") and not corpus.counts(k)]
    kinds = f"CLASSES is a {type(meta.get('CLASSES')).__name__}, PALETTE a {type(palette).__name__}"
    corpus.answer(
        path,
        family="mmseg",
        packages=PACKAGES,
        made=made,
        said=f"meta has {sorted(meta)}; {kinds}",
        classes=list(meta["CLASSES"]) if meta.get("CLASSES") is not None else None,
        palette=np.asarray(palette).tolist() if palette is not None else None,
        tensors=len(used),
        arrays=corpus.segmentation(x, low.numpy(), full.numpy()),
    )


def main(out: Path) -> None:
    data, work = out / "data0", out / "work0"
    data_of(data)
    # No palette makes the library draw a random one, which is an array.
    for arch, name, classes, palette in (
        ("stdc1", "list", CLASSES, PALETTE),
        ("stdc1", "array_palette", tuple(CLASSES), None),
        ("stdc2", "list", CLASSES, PALETTE),
    ):
        train(out, f"mmseg0_{arch}_{name}", config(arch, data, work, classes, palette))
    source = torch.load(out / "mmseg0_stdc1_list.iter_1.pth", weights_only=False)
    cfg = config("stdc1", data, work, CLASSES, PALETTE)
    # As tools/publish_model.py: the optimizer is deleted, and torch.save called.
    del source["optimizer"]
    torch.save(source, out / "mmseg0_stdc1_published.pth")
    describe(
        out / "mmseg0_stdc1_published.pth", cfg, "tools/publish_model.py: torch.save without the optimizer"
    )
    legacy = out / "mmseg0_stdc1_published_legacy.pth"
    torch.save(source, legacy, _use_new_zipfile_serialization=False)
    describe(legacy, cfg, "tools/publish_model.py of torch < 1.6: not a zip archive")
    shutil.rmtree(data)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
