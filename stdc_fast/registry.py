"""Published STDC weights as frozen records: what is known of each file, with its hash where one is published.

A name is ``NETWORK_DATA.ORIGIN``:

- NETWORK is ``stdc1`` or ``stdc2``, with ``_seg50`` or ``_seg75`` where a publisher has a file for each input
  scale;
- DATA is what it was trained on; ``in1k_cityscapes`` started from ImageNet where the same publisher has a
  file that did not, and ``in1k`` alone is a backbone;
- ORIGIN is ``official``, ``mmseg``, ``sg`` (super-gradients) or ``paddle``. Embedded weights have none.

None, wherever it is allowed, means not published or not known. Numbers are the publishers'; nobody measured
them here. ``python -m bench.models_doc`` writes docs/models.md from the records.
"""

from __future__ import annotations

import dataclasses
import json

from stdc_fast.classes import CITYSCAPES, PASCAL_VOC, ClassSet

#: Records are searched by these.
SEGMENTATION, BACKBONE = "segmentation", "backbone"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
    """A published speed, in the unit in which it was published, and what it was measured on."""

    fps: float | None = None
    milliseconds: float | None = None
    conditions: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One published file.

    Attributes:
        name: see the module.
        task: "segmentation" or "backbone".
        variant: "stdc1" or "stdc2".
        publisher: the code base that trained it, and whose program reads it.
        dataset: what it was trained on; ``pretrained`` what its backbone was trained on before, None for
            nothing.
        classes: names and colours by class id; None for backbones.
        scale: of the image, for the network to see it as in the published evaluation.
        count_include_pad: whether average pools divide by 9 at the border too.
        file: name of the file; ``urls`` where it is, best first; ``page`` where people find it.
        uncertain: the addresses come from older versions of the publisher's code; nobody knows whether they
            still work.
        sha256: leading hexadecimal digits, as many as are published.
        miou: mean IoU at one scale, as a fraction; ``miou_flip`` averaged with the mirrored image,
            ``miou_ms_flip`` over several scales and their mirrored images too.
        miou_split: what it was measured on; ``label_scale`` the labels' size there, 1 for their own.
        top1: ImageNet accuracy, as a fraction.
        training, memory_gb: how it was trained, and GB of each GPU that training took.
        speed: see :class:`Speed`.
        code_licence, terms: of the publisher's code, and what else the weights carry.
    """

    name: str
    task: str = SEGMENTATION
    variant: str
    publisher: str
    dataset: str = "Cityscapes"
    pretrained: str | None = None
    classes: ClassSet | None = CITYSCAPES
    scale: float = 1.0
    count_include_pad: bool = True
    file: str
    urls: tuple[str, ...] = ()
    page: str
    uncertain: bool = False
    sha256: str | None = None
    miou: float | None = None
    miou_flip: float | None = None
    miou_ms_flip: float | None = None
    miou_split: str | None = None
    label_scale: float | None = None
    top1: float | None = None
    training: str | None = None
    memory_gb: float | None = None
    speed: tuple[Speed, ...] = ()
    code_licence: str
    terms: str
    notes: tuple[str, ...] = ()

    def facts(self) -> dict[str, object]:
        """All of it as JSON values, classes and palette as in the metadata of our own files."""
        return json.loads(json.dumps(dataclasses.asdict(self) | _classes(self.classes)))

    def defaults(self) -> dict[str, object]:
        """What :func:`stdc_fast.load` takes from here where the file has no such metadata."""
        return _classes(self.classes) | {"scale": self.scale}

    def provenance(self) -> dict[str, object]:
        """What the publisher says of the weights, under the keys of our own files' metadata."""
        known = {"miou": self.miou, "miou_split": self.miou_split, "backbone": self.pretrained}
        return {
            **{k: v for k, v in known.items() if v is not None},
            "source": f"{self.publisher}, {self.file}, trained on {self.dataset}; scores are the publisher's",
            "terms": f"{self.terms}; code {self.code_licence}",
        }


def _classes(classes: ClassSet | None) -> dict[str, object]:
    if classes is None:
        return {"classes": None, "palette": None}
    return {"classes": list(classes.names), "palette": [list(colour) for colour in classes.palette]}


_CITYSCAPES_TERMS = "trained on Cityscapes, whose terms apply: https://www.cityscapes-dataset.com/license/"
_IMAGENET_TERMS = "trained on ImageNet, whose terms apply: https://www.image-net.org/download.php"
_VOC_TERMS = (
    "trained on Pascal VOC 2012 and its augmentation SBD, whose terms apply: "
    "http://host.robots.ox.ac.uk/pascal/VOC/"
)
_VAL = "Cityscapes val, 500 images"


def _backbone(**facts: object) -> Record:
    shared = {"task": BACKBONE, "dataset": "ImageNet", "classes": None, "terms": _IMAGENET_TERMS}
    return Record(**shared | facts)


# ---------------------------------------------------------------- mmsegmentation

_MMSEG_ROOT = "https://download.openmmlab.com/mmsegmentation/v0.5"


def _mmseg(variant: str, pretrained: bool, run: str, sha256: str, old: str, **facts: object) -> Record:
    """``run`` is the date in its name; ``old`` says what is known of the file that it replaced."""
    config = f"{variant}{'_in1k-pre' if pretrained else ''}_512x1024_80k_cityscapes"
    file = f"{config}_{run}-{sha256}.pth"
    return Record(
        name=f"{variant}_{'in1k_' if pretrained else ''}cityscapes.mmseg",
        variant=variant,
        publisher="mmsegmentation",
        pretrained="ImageNet" if pretrained else None,
        file=file,
        urls=(f"{_MMSEG_ROOT}/stdc/{config}/{file}",),
        page="https://github.com/open-mmlab/mmsegmentation/tree/main/configs/stdc",
        sha256=sha256,
        miou_split=_VAL,
        label_scale=1.0,
        training="80000 iterations, crops of 512x1024, 4 V100 with 12 crops each",
        code_licence="Apache-2.0",
        terms=_CITYSCAPES_TERMS,
        notes=(f"It replaced a file of November 2021 without metadata: {old}.",),
        **facts,
    )


def _mmseg_speed(fps: float) -> dict[str, object]:
    conditions = (
        "V100, PyTorch, float32, batch 1, 512x1024; for reference only, says the publisher, who has the same "
        "number for the file of November 2021"
    )
    return {"speed": (Speed(fps=fps, conditions=conditions),)}


_MMSEG = (
    _mmseg(
        "stdc1", False, "20220224_073048", "74e6920a", "2c8ba4c5, mIoU 71.52 %, 73.35 % with ms+flip",
        miou=0.7182, miou_ms_flip=0.7389, memory_gb=7.15, **_mmseg_speed(23.06),
    ),
    _mmseg(
        "stdc1", True, "20220224_141648", "3d4c2981", "880bb7d0, mIoU 75.10 %, 77.72 % with ms+flip",
        miou=0.7494, miou_ms_flip=0.7697,
    ),
    _mmseg(
        "stdc2", False, "20220222_132015", "fb1e3a1a", "82333ae0, mIoU 73.20 %, 75.55 % with ms+flip",
        miou=0.7315, miou_ms_flip=0.7613, memory_gb=8.27, **_mmseg_speed(23.71),
    ),
    _mmseg(
        "stdc2", True, "20220224_073048", "1f8f0f6c", "d2c469f8, mIoU 77.17 %, 79.01 % with ms+flip",
        miou=0.7667, miou_ms_flip=0.7867,
    ),
    *(
        _backbone(
            name=f"{variant}_in1k.mmseg",
            variant=variant,
            publisher="mmsegmentation",
            file=f"{variant}_20220308-{sha256}.pth",
            urls=(f"{_MMSEG_ROOT}/pretrain/stdc/{variant}_20220308-{sha256}.pth",),
            page="https://github.com/open-mmlab/mmsegmentation/tree/main/configs/stdc",
            sha256=sha256,
            code_licence="Apache-2.0",
            notes=("The official backbone under the names of mmsegmentation.",),
        )
        for variant, sha256 in (("stdc1", "5368626c"), ("stdc2", "7dbd9127"))
    ),
)  # fmt: skip

# ---------------------------------------------------------------- the paper's own repository

_DRIVE = "https://drive.google.com/drive/folders/1wROFwRt8qWHD4jSo8Zu1gp1d6oYJ3ns1"
_BAIDU = "https://pan.baidu.com/s/1OdMsuQSSiK1EyNs6_KiFIw (password q7dt)"
_OFFICIAL_PAGE = f"{_DRIVE} or {_BAIDU}"


def _official(variant: str, percent: int, miou: float, test: str, fps: float) -> Record:
    size = {50: "512x1024", 75: "768x1536"}[percent]
    conditions = (
        f"GTX 1080Ti, TensorRT 5.1.5, float32, batch 1, {size}, logits resized by nearest neighbours, "
        "without argmax and copies"
    )
    return Record(
        name=f"{variant}_seg{percent}_cityscapes.official",
        variant=variant,
        publisher="STDC-Seg",
        pretrained="ImageNet",
        scale=percent / 100,
        file=f"model_maxmIOU{percent}.pth",
        page=f"folder {variant.upper()}-Seg of {_OFFICIAL_PAGE}",
        miou=miou,
        miou_split=_VAL,
        label_scale=1.0,
        training="60000 iterations; the 50 and 75 files are the best two snapshots of one run",
        speed=(Speed(fps=fps, conditions=conditions),),
        code_licence="MIT",
        terms=_CITYSCAPES_TERMS,
        notes=(
            f"The paper has {test} % on the test set, from a training with val.",
            "Norms of the decoder are in-place ones.",
        ),
    )


_OFFICIAL = (
    _official("stdc1", 50, 0.7222, "71.9", 250.4),
    _official("stdc1", 75, 0.7450, "75.3", 126.7),
    _official("stdc2", 50, 0.7424, "73.4", 188.6),
    _official("stdc2", 75, 0.7704, "76.8", 97.0),
    *(
        _backbone(
            name=f"{variant}_in1k.official",
            variant=variant,
            publisher="STDC-Seg",
            file=file,
            page=_OFFICIAL_PAGE,
            top1=top1,
            code_licence="MIT",
            notes=("A torch file, in spite of its suffix.",),
        )
        for variant, file, top1 in (
            ("stdc1", "STDCNet813M_73.91.tar", 0.7391),
            ("stdc2", "STDCNet1446_76.47.tar", 0.7647),
        )
    ),
)

# ---------------------------------------------------------------- super-gradients

_SG_ROOT = "https://deci-pretrained-models.s3.amazonaws.com"
_SG_PAGE = "https://github.com/Deci-AI/super-gradients"
_SG_GONE = "The address of the last release, https://sghub.deci.ai/models/{}, is gone with its host."
_SG_DOUBT = "The last one says more, and it is not known which of them the file has."


def _super_gradients(
    variant: str, percent: int, path: str, miou: float, old: str, t4: tuple[float, float], xavier: float
) -> Record:
    """``old`` is the mIoU of an earlier release, if it is another; ``t4`` and ``xavier`` are milliseconds."""
    size = {50: "512x1024", 75: "768x1536"}[percent]
    on_t4 = f"T4, TensorRT, float16, batch 1, {size} resized from and to 1024x2048"
    return Record(
        name=f"{variant}_seg{percent}_cityscapes.sg",
        variant=variant,
        publisher="super-gradients",
        pretrained="ImageNet",
        scale=percent / 100,
        file=f"{variant}_seg{percent}_cityscapes.pth",
        urls=(f"{_SG_ROOT}/{path}.pth",),
        page=_SG_PAGE,
        uncertain=True,
        miou=miou,
        miou_split=_VAL,
        label_scale=percent / 100,
        speed=(
            Speed(milliseconds=t4[0], conditions=f"{on_t4}, without input and output"),
            Speed(milliseconds=t4[1], conditions=f"{on_t4}, with input and output"),
            Speed(milliseconds=xavier, conditions="Xavier NX, in production"),
        ),
        code_licence="Apache-2.0",
        terms=_CITYSCAPES_TERMS,
        notes=(
            _SG_GONE.format(f"{variant}_seg{percent}_cityscapes.pth"),
            "Labels were reduced as the image was, so its mIoU is not comparable with those at full size.",
            *([f"The release that had this address says {old} %. {_SG_DOUBT}"] if old else []),
        ),
    )


_SUPER_GRADIENTS = (
    _super_gradients("stdc1", 50, "stdc1_seg50/ckpt_best-3", 0.7511, "74.36", (3.34, 30.12), 27.54),
    _super_gradients("stdc1", 75, "stdc1_seg75_cityscapes/ckpt_best", 0.778, "76.87", (5.53, 32.49), 43.88),
    _super_gradients("stdc2", 50, "stdc2_seg50_cityscapes/ckpt_best", 0.7644, "75.27", (4.12, 30.94), 32.03),
    _super_gradients("stdc2", 75, "stdc2_seg75_cityscapes/ckpt_best", 0.7893, "", (6.95, 33.89), 54.48),
    *(
        _backbone(
            name=f"{variant}_in1k.sg",
            variant=variant,
            publisher="super-gradients",
            file=f"{variant}_imagenet_pretrained.pth",
            urls=(f"{_SG_ROOT}/stdc_backbones/{variant}_imagenet_pretrained.pth",),
            page=_SG_PAGE,
            uncertain=True,
            code_licence="Apache-2.0",
        )
        for variant in ("stdc1", "stdc2")
    ),
)

# ---------------------------------------------------------------- PaddleSeg

_PADDLE_ROOT = "https://bj.bcebos.com/paddleseg/dygraph"


def _paddle(variant: str, data: str, folder: str, old: str, **facts: object) -> Record:
    """``old`` is the mIoU with ms+flip that an older version of the page has."""
    return Record(
        name=f"{variant}_{data}.paddle",
        variant=variant,
        publisher="PaddleSeg",
        pretrained="ImageNet",
        count_include_pad=False,
        file="model.pdparams",
        urls=(f"{_PADDLE_ROOT}/{folder}/model.pdparams",),
        page="https://github.com/PaddlePaddle/PaddleSeg/tree/develop/configs/stdcseg",
        label_scale=1.0,
        code_licence="Apache-2.0",
        notes=(
            "Average pools leave the padding out, so the border differs from the other publishers'. "
            "Images are normalised with mean and deviation 0.5.",
            f"Until February 2023 the page had {old} % with ms+flip.",
        ),
        **facts,
    )


def _paddle_cityscapes(
    variant: str, old: str, miou: tuple[float, float, float], milliseconds: float, before: float
) -> Record:
    conditions = f"V100, Paddle Inference 2.1.3, batch 1, 512x1024; the CPU prepares the image in {before} ms"
    return _paddle(
        variant, "cityscapes", f"cityscapes/{variant}_seg_cityscapes_1024x512_80k", old,
        **dict(zip(("miou", "miou_flip", "miou_ms_flip"), miou, strict=True)),
        miou_split=_VAL, training="80000 iterations, crops of 512x1024, 12 a GPU", terms=_CITYSCAPES_TERMS,
        speed=(Speed(milliseconds=milliseconds, conditions=conditions),),
    )  # fmt: skip


def _paddle_voc(variant: str, old: str, miou: tuple[float, float, float]) -> Record:
    return _paddle(
        variant, "voc12aug", f"pascal_voc12/{variant}_seg_voc12aug_512x512_40k", old,
        **dict(zip(("miou", "miou_flip", "miou_ms_flip"), miou, strict=True)),
        dataset="Pascal VOC 2012 + SBD", classes=PASCAL_VOC, miou_split="Pascal VOC 2012 val",
        training="40000 iterations, crops of 512x512", terms=_VOC_TERMS,
    )  # fmt: skip


_PADDLE = (
    _paddle_cityscapes("stdc1", "76.64", (0.7474, 0.7571, 0.7677), 9.10, 153.0),
    _paddle_cityscapes("stdc2", "78.83", (0.7760, 0.7832, 0.7909), 10.88, 152.6),
    _paddle_voc("stdc1", "69.04", (0.6806, 0.6848, 0.6926)),
    _paddle_voc("stdc2", "69.99", (0.6898, 0.7007, 0.7072)),
)

#: All of them by name; segmentation networks and backbones.
RECORDS: dict[str, Record] = {
    record.name: record for record in (*_MMSEG, *_OFFICIAL, *_SUPER_GRADIENTS, *_PADDLE)
}
