"""super-gradients 3.7.1: python super_gradients_files.py OUT

Checkpoints by the package's own Trainer. It is installed without its pins. data-gradients only reports
on data sets and is an empty module here. torchvision is imported without its compiled operators.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

os.environ["CRASH_HANDLER"] = "FALSE"
os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # 3.7.1 can not read its own averages otherwise
import corpus
import numpy as np
import torch
from PIL import Image

register = torch.library.register_fake
torch.library.register_fake = lambda *args, **kwargs: lambda function: function
import torchvision  # noqa: F401

torch.library.register_fake = register
corpus.stub(
    "onnxsim",
    "data_gradients",
    "data_gradients.common",
    "data_gradients.common.decorators",
    "data_gradients.dataset_adapters",
    "data_gradients.dataset_adapters.base_adapter",
    "data_gradients.dataset_adapters.config",
    "data_gradients.dataset_adapters.config.data_config",
    "data_gradients.dataset_adapters.config.typing_utils",
    "data_gradients.dataset_adapters.classification_adapter",
    "data_gradients.dataset_adapters.detection_adapter",
    "data_gradients.dataset_adapters.segmentation_adapter",
    "data_gradients.utils",
    "data_gradients.utils.data_classes",
    "data_gradients.utils.data_classes.data_samples",
)
from super_gradients.training import Trainer, models
from super_gradients.training.datasets.segmentation_datasets.segmentation_dataset import SegmentationDataSet
from super_gradients.training.metrics import IoU
from super_gradients.training.transforms.transforms import SegConvertToTensor, SegNormalize, SegStandardize

PACKAGES = corpus.versions("super-gradients", "torch", "numpy", "torchmetrics")
CLASSES = [f"thing {i}" for i in range(7)]


class Pictures(SegmentationDataSet):
    """Random pictures of seven classes."""

    def __init__(self, root: Path, transforms: list):
        super().__init__(str(root), list_file="unused", transforms=transforms)  # folders fail in this version
        self.classes = list(CLASSES)

    def _generate_samples_and_targets(self) -> None:
        self.samples_targets_tuples_list = [
            (f"{self.root}/img/{i}.png", f"{self.root}/ann/{i}.png") for i in range(4)
        ]


def dataset(folder: Path) -> Pictures:
    rng = np.random.default_rng(0)
    for part in ("img", "ann"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for i in range(4):
        Image.fromarray(rng.integers(0, 255, (64, 96, 3), dtype=np.uint8)).save(folder / f"img/{i}.png")
        Image.fromarray(rng.integers(0, 7, (64, 96), dtype=np.uint8)).save(folder / f"ann/{i}.png")
    steps = [
        SegStandardize(),
        SegNormalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        SegConvertToTensor(mask_output_dtype=torch.long),
    ]
    return Pictures(folder, steps)


def segmentation(out: Path, arch: str, data: Pictures, **settings) -> None:
    """Train for two epochs of two small steps, and keep all that the Trainer writes."""
    name = f"sg_{arch}" + ("_ema" if settings.get("ema") else "")
    loader = torch.utils.data.DataLoader(data, batch_size=2, shuffle=False, drop_last=True)
    net = models.get(arch, num_classes=7)
    corpus.randomise(net)
    trainer = Trainer(name, ckpt_root_dir=str(out / "sg"))
    training = dict(
        max_epochs=2,
        initial_lr=0.001,
        lr_mode="CosineLRScheduler",
        loss="STDCLoss",
        criterion_params=dict(num_classes=7, ignore_index=7),
        optimizer="SGD",
        optimizer_params=dict(momentum=0.9),
        train_metrics_list=[],
        valid_metrics_list=[IoU(num_classes=8, ignore_index=7)],
        metric_to_watch="IoU",
        greater_metric_to_watch_is_better=True,
        average_best_models=True,
        mixed_precision=False,
        silent_mode=True,
        **settings,
    )
    trainer.train(net, training_params=training, train_loader=loader, valid_loader=loader)
    for path in sorted(Path(trainer.checkpoints_dir_path).glob("*.pth")):
        kept = out / f"{name}.{path.name}"
        path.rename(kept)
        describe(kept, arch)


def describe(path: Path, arch: str) -> None:
    raw = torch.load(path, map_location="cpu", weights_only=False)
    if "net" not in raw and "ema_net" not in raw:
        path.unlink()  # snapshots to average later
        return
    key = "ema_net" if "ema_net" in raw else "net"
    net = models.get(arch, num_classes=7)
    net.load_state_dict(raw[key])
    net = net.double().eval()
    x = corpus.picture(128, 256)
    low = {}
    net.segmentation_head[0].register_forward_hook(lambda m, i, o: low.update(value=o))
    with torch.inference_mode():
        full = net(torch.from_numpy(x).double())
    full = full[0] if isinstance(full, tuple) else full
    state = raw[key]
    training = ("aux_head_s16.", "aux_head_s32.", "detail_head8.")
    params = raw.get("processing_params")
    corpus.answer(
        path,
        family="super-gradients",
        packages=PACKAGES,
        made=f"super_gradients.training.Trainer; the weights are those of {key!r}",
        said=f"keys {sorted(raw)}; processing_params {params!r}"[:1500],
        classes=params["class_names"] if params else None,
        tensors=sum(not k.startswith(training) and not corpus.counts(k) for k in state),
        arrays=corpus.segmentation(x, low["value"].numpy(), full.numpy()),
    )


def classifier(out: Path, arch: str) -> None:
    """As of the published backbones: {'net': ...} of the ImageNet classifier."""
    net = models.get(f"{arch}_classification", num_classes=1000)
    corpus.randomise(net)
    path = out / f"sg_{arch}_classifier.pth"
    torch.save({"net": net.state_dict(), "acc": torch.tensor(0.7), "epoch": 7}, path)
    net = net.double().eval()
    x = corpus.picture(128, 256)
    with torch.inference_mode():
        y = torch.from_numpy(x).double()
        scores, features = net(y), []
        for stage in net.backbone.stages.values():
            y = stage(y)
            features.append(y.numpy())
    corpus.answer(
        path,
        family="super-gradients",
        packages=PACKAGES,
        made="torch.save of {'net', 'acc', 'epoch'} of the real classifier",
        kind="backbone",
        tensors=sum(k.startswith("backbone.") and not corpus.counts(k) for k in net.state_dict()),
        arrays=dict(
            x=x, scores=scores.numpy(), features8=features[2], features16=features[3], features32=features[4]
        ),
    )


def main(out: Path) -> None:
    for arch in ("stdc1", "stdc2"):
        classifier(out, arch)
    data = dataset(out / "sg/data")
    segmentation(out, "stdc1_seg50", data)
    segmentation(out, "stdc1_seg75", data, ema=True, ema_params=dict(decay=0.9, decay_type="constant"))
    segmentation(out, "stdc2_seg50", data, ema=True, ema_params=dict(decay=0.9, decay_type="constant"))
    segmentation(out, "stdc2_seg75", data)
    shutil.rmtree(out / "sg")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
