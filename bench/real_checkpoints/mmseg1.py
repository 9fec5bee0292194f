"""mmsegmentation 1.2.2: python mmseg1.py OUT [NAME ...]

Training checkpoints by mmengine's Runner, published files, backbones, and networks of other options, which
the tensors alone do not tell.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import shutil
import sys
import time
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # mmengine 0.10.7 can not read its own files otherwise
import corpus
import numpy as np
import torch
from PIL import Image

for name in (
    "mmcv.ops",
    "mmcv.ops.point_sample",
    "mmcv.ops.multi_scale_deform_attn",
    "mmdet",
    "mmdet.models",
    "mmdet.models.dense_heads",
    "mmdet.models.utils",
    "mmdet.utils",
):
    try:
        __import__(name)
    except Exception:  # mmcv-lite has no compiled operators
        corpus.stub(name)
import mmseg
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.runner.checkpoint import save_checkpoint
from mmseg.registry import MODELS

PACKAGES = corpus.versions("mmsegmentation", "mmengine", "mmcv-lite", "torch", "numpy")
CLASSES = [f"thing {i}" for i in range(7)]
PALETTE = [[i * 30, 255 - i * 30, 90] for i in range(7)]
WRITER = "mmengine.runner.Runner with CheckpointHook"


def dataset(folder: Path) -> None:
    """Four random pictures with labels of seven classes."""
    rng = np.random.default_rng(0)
    for part in ("img", "ann", "binary"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for i in range(4):
        Image.fromarray(rng.integers(0, 255, (96, 160, 3), dtype=np.uint8)).save(folder / f"img/{i}.png")
        labels = rng.integers(0, 7, (96, 160), dtype=np.uint8)
        Image.fromarray(labels).save(folder / f"ann/{i}.png")
        Image.fromarray(labels % 2).save(folder / f"binary/{i}.png")


def config(arch: str, data: Path, work: Path, epochs: bool = False, validate: bool = False) -> Config:
    """The library's own config of STDC, for a training of two small iterations on the CPU."""
    name = f".mim/configs/stdc/{arch}_4xb12-80k_cityscapes-512x1024.py"
    cfg = Config.fromfile(Path(mmseg.__file__).parent / name)
    steps = [
        dict(type="LoadImageFromFile"),
        dict(type="LoadAnnotations"),
        dict(type="RandomCrop", crop_size=(64, 128)),
        dict(type="PackSegInputs"),
    ]
    pictures = dict(
        type="BaseSegDataset",
        data_root=str(data),
        data_prefix=dict(img_path="img", seg_map_path="ann"),
        img_suffix=".png",
        seg_map_suffix=".png",
        metainfo=dict(classes=tuple(CLASSES), palette=PALETTE),
        pipeline=steps,
    )
    sampler = dict(type="DefaultSampler" if epochs else "InfiniteSampler", shuffle=True)
    cfg.train_dataloader = dict(batch_size=2, num_workers=0, sampler=sampler, dataset=pictures)
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.test_dataloader = cfg.test_cfg = cfg.test_evaluator = None
    cfg.train_cfg = dict(type="IterBasedTrainLoop", max_iters=2, val_interval=2)
    hook = dict(type="CheckpointHook", by_epoch=epochs, interval=1 if epochs else 2)
    if epochs:
        cfg.train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=1, val_interval=1)
    if validate:
        shown = dict(pictures, pipeline=[steps[0], steps[1], steps[3]])
        order = dict(type="DefaultSampler", shuffle=False)
        cfg.val_dataloader = dict(batch_size=1, num_workers=0, sampler=order, dataset=shown)
        cfg.val_cfg, cfg.val_evaluator = dict(type="ValLoop"), dict(type="IoUMetric", iou_metrics=["mIoU"])
        hook["save_best"] = "mIoU"
    cfg.default_hooks.checkpoint = hook
    cfg.default_hooks.logger.interval = 1
    cfg.crop_size = cfg.data_preprocessor.size = cfg.model.data_preprocessor.size = (64, 128)
    for head in (cfg.model.decode_head, *cfg.model.auxiliary_head[:2]):
        head.num_classes = 7
    for part in parts(cfg):
        part.norm_cfg = dict(type="BN", requires_grad=True)  # SyncBN needs several processes
    cfg.work_dir, cfg.launcher = str(work), "none"
    cfg.visualizer.vis_backends = [dict(type="LocalVisBackend")]
    return cfg


def parts(cfg: Config) -> list:
    model = cfg.model
    return [model.backbone, model.backbone.backbone_cfg, model.decode_head, *model.auxiliary_head]


def eps(cfg: Config) -> None:
    for part in parts(cfg):
        part.norm_cfg["eps"] = 1e-3


def binary(threshold: float | None):
    def change(cfg: Config) -> None:
        for head in (cfg.model.decode_head, *cfg.model.auxiliary_head[:2]):
            head.num_classes, head.out_channels = 2, 1
            head.loss_decode = dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0)
            head.sampler = None  # its OHEM sampler fails on one channel
            if threshold is not None:
                head.threshold = threshold
        cfg.train_dataloader.dataset.data_prefix.seg_map_path = "binary"
        cfg.train_dataloader.dataset.metainfo = dict(
            classes=("background", "crack"), palette=[[0, 0, 0], [255, 0, 0]]
        )

    return change


def head(**settings):
    return lambda cfg: cfg.model.decode_head.update(settings)


def context(**settings):
    return lambda cfg: cfg.model.backbone.update(settings)


def stdcnet(**settings):
    return lambda cfg: cfg.model.backbone.backbone_cfg.update(settings)


def colours(cfg: Config) -> None:
    own = dict(mean=[90.0, 100.0, 110.0], std=[50.0, 60.0, 70.0], bgr_to_rgb=False)
    cfg.data_preprocessor.update(own)
    cfg.model.data_preprocessor.update(own)


def activation(cfg: Config) -> None:
    cfg.model.backbone.backbone_cfg.act_cfg = dict(type="LeakyReLU", negative_slope=0.1)


#: Networks of other options: what is changed, and whether the reader may also refuse.
VARIANTS = {
    "final_conv": (stdcnet(with_final_conv=True), "load"),
    "add": (stdcnet(bottleneck_type="add"), "load"),
    "binary": (binary(None), "load"),
    "binary_threshold": (binary(0.6), "load"),
    "corners_false": (head(align_corners=False), "load"),
    "bilinear": (context(upsample_mode="bilinear", align_corners=False), "load"),
    "bilinear_corners": (context(upsample_mode="bilinear", align_corners=True), "load"),
    "bicubic": (context(upsample_mode="bicubic", align_corners=False), "either"),
    "eps": (eps, "load"),
    "colours": (colours, "load"),
    "concat_input": (head(concat_input=True), "either"),
    "two_convs": (head(num_convs=2), "either"),
    "no_conv": (head(num_convs=0, channels=256), "either"),
    "narrow_head": (head(channels=64), "either"),
    "dropout": (head(dropout_ratio=0.3), "load"),
    "head_leaky": (head(act_cfg=dict(type="LeakyReLU", negative_slope=0.1)), "either"),
    "body_leaky": (activation, "either"),
    "three_convs_a_block": (stdcnet(num_convs=3), "either"),
}


def arrays(network, cfg: Config, height: int = 120, width: int = 250) -> dict[str, np.ndarray]:
    """Input and true outputs of a network in float64; of its preprocessor too."""
    network = network.double().eval()
    x = corpus.picture(height, width)
    meta = [dict(ori_shape=(height, width), img_shape=(height, width), pad_shape=(height, width))]
    with torch.inference_mode():
        low = network(torch.from_numpy(x).double(), mode="tensor")
        full = network.encode_decode(torch.from_numpy(x).double(), meta)
        found = corpus.segmentation(x, low.numpy(), full.numpy())
        image = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
        bgr = torch.from_numpy(image[:, :, ::-1].copy()).permute(2, 0, 1)
        network.data_preprocessor.test_cfg = None
        seen = network.data_preprocessor(dict(inputs=[bgr]))["inputs"]
        found["image"], found["image_seen"] = image, seen.numpy()
        logits = network.encode_decode(seen.double(), meta)
        samples = network.postprocess_result(logits.clone())
        found["image_labels"] = samples[0].pred_sem_seg.data[0].numpy().astype(np.uint8)
        found["image_logits"] = logits.numpy()[:, :, ::8, ::8]
    return found


def inference(state: dict) -> int:
    """Tensors of the inference network, without second names of one storage."""
    used = [k for k in state if not k.startswith("auxiliary_head.") and not corpus.counts(k)]
    return len({state[k].data_ptr() for k in used})


def describe(path: Path, cfg: Config, options: dict, expect: str, made: str = WRITER) -> None:
    raw = torch.load(path, map_location="cpu", weights_only=False)
    network = MODELS.build(cfg.model)
    network.load_state_dict(raw["state_dict"])
    meta = raw["meta"]
    names = meta.get("dataset_meta") or {}
    said = "meta['cfg']: the whole config as text" if "cfg" in meta else f"meta has {sorted(meta)}"
    needed = options if "cfg" not in meta else {}
    corpus.answer(
        path,
        family="mmseg",
        packages=PACKAGES,
        made=made,
        expect=expect,
        why="a network that stdc_fast may not compute" if expect == "either" else "",
        options=options,
        said=said,
        classes=list(names["classes"]) if names else None,
        palette=names.get("palette"),
        tensors=inference(raw["state_dict"]),
        load=needed,
        arrays=arrays(network, cfg),
    )


def train(out: Path, name: str, cfg: Config, options: dict, expect: str = "load", keep=("*.pth",)) -> None:
    """Train, keep the checkpoints as NAME.FILE, and write their answers."""
    cfg.visualizer.name = cfg.experiment_name = f"{name}_{len(list(out.iterdir()))}"  # one visualizer a name
    runner = Runner.from_cfg(cfg)
    corpus.randomise(runner.model)
    runner.train()
    work = Path(cfg.work_dir)
    for path in sorted(work.glob("*.pth")):
        kept = out / f"{name}.{path.name}"
        path.rename(kept)
        describe(kept, cfg, options, expect)
    shutil.rmtree(work)


def tool(place: str):
    """A script of the library that its wheel holds under .mim/tools."""
    path = Path(mmseg.__file__).parent / ".mim/tools" / place
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def published(out: Path, source: Path) -> None:
    """By tools/misc/publish_model.py, and by mmengine.save_checkpoint with and without meta."""
    raw = torch.load(source, map_location="cpu", weights_only=False)
    cfg = Config.fromstring(raw["meta"]["cfg"], ".py")
    before = set(out.iterdir())
    tool("misc/publish_model.py").process_checkpoint(str(source), str(out / "mmseg1_stdc1_published.pth"))
    while not (made := [p for p in out.glob("mmseg1_stdc1_published-*.pth") if p not in before]):
        time.sleep(0.1)  # its mv runs in the background
    describe(made[0], cfg, {}, "load", "tools/misc/publish_model.py, which drops the optimizer only")
    for meta, name in ((raw["meta"], "weights_and_meta"), ({}, "weights")):
        path = out / f"mmseg1_stdc1_{name}.pth"
        save_checkpoint({"meta": meta, "state_dict": raw["state_dict"]}, str(path))
        describe(path, cfg, {}, "load", "mmengine.runner.checkpoint.save_checkpoint")


def backbones(out: Path) -> None:
    """Its STDCNet alone, and the converter's output of the official ImageNet file."""
    converter = tool("model_converters/stdc2mmseg.py").convert_stdc
    for arch, number in (("stdc1", "STDC1"), ("stdc2", "STDC2")):
        cfg = Config.fromfile(Path(mmseg.__file__).parent / ".mim/configs/_base_/models/stdc.py")
        settings = dict(cfg.model.backbone.backbone_cfg, stdc_type=f"STDCNet{number[-1]}")
        settings["norm_cfg"] = dict(type="BN")
        net = MODELS.build(settings)
        corpus.randomise(net)
        files = {f"mmseg1_{arch}_backbone.pth": (net.state_dict(), "torch.save of STDCNet's state_dict()")}
        source = out / f"official_{'STDCNet813M_73.91' if arch == 'stdc1' else 'STDCNet1446_76.47'}.tar"
        made = converter(torch.load(source, weights_only=True)["state_dict"], number)
        files[f"mmseg1_{arch}_converted.pth"] = (
            made,
            f"tools/model_converters/stdc2mmseg.py of {source.name}",
        )
        for name, (state, how) in files.items():
            torch.save(state, out / name)
            strange = net.load_state_dict(state, strict=False)
            assert not strange.missing_keys
            double = copy.deepcopy(net).double().eval()
            x = corpus.picture()
            with torch.inference_mode():
                features = double(torch.from_numpy(x).double())
            corpus.answer(
                out / name,
                family="mmseg",
                packages=PACKAGES,
                made=how,
                kind="backbone",
                said=f"{len(strange.unexpected_keys)} other keys: {strange.unexpected_keys[:3]}",
                tensors=sum(k.startswith("stages.") and not corpus.counts(k) for k in state),
                arrays=dict(
                    x=x, **{f"features{s}": f.numpy() for s, f in zip((8, 16, 32), features, strict=True)}
                ),
            )


def main(out: Path, wanted: list[str]) -> None:
    init_default_scope("mmseg")
    data, work = out / "data", out / "work"
    dataset(data)

    def chosen(name: str) -> bool:
        return not wanted or name in wanted

    for arch in ("stdc1", "stdc2"):
        if chosen(arch):
            train(out, f"mmseg1_{arch}", config(arch, data, work, validate=True), {})
        if chosen(f"{arch}_ema"):
            cfg = config(arch, data, work, validate=arch == "stdc1")
            cfg.custom_hooks = [dict(type="EMAHook", ema_type="ExponentialMovingAverage", momentum=0.5)]
            train(out, f"mmseg1_{arch}_ema", cfg, {})
    if chosen("epoch"):
        train(out, "mmseg1_stdc1", config("stdc1", data, work, epochs=True), {})
    if chosen("published"):
        published(out, out / "mmseg1_stdc1.iter_2.pth")
    if chosen("backbones"):
        backbones(out)
    for name, (change, expect) in VARIANTS.items():
        if chosen(name):
            cfg = config("stdc1", data, work)
            cfg.train_cfg.max_iters = cfg.default_hooks.checkpoint.interval = 1
            cfg.default_hooks.checkpoint.save_optimizer = False
            change(cfg)
            train(out, f"mmseg1_stdc1_{name}", cfg, {"variant": name}, expect)
    shutil.rmtree(data)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
