"""pytorch-lightning 2.6.6: python lightning_files.py OUT

Checkpoints by its Trainer, around the network of stdc_fast.reference.
"""

from __future__ import annotations

import argparse
import datetime
import pathlib
import shutil
import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
sys.path.insert(0, str(Path(__file__).parents[2]))
import corpus
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf

from stdc_fast.reference.networks import STDCSeg

PACKAGES = corpus.versions("pytorch-lightning", "torch", "omegaconf")


class Module(pl.LightningModule):
    """A training of the usual kind; ``place`` is the attribute that holds the network."""

    def __init__(self, place: str, net: torch.nn.Module, **settings):
        super().__init__()
        self.save_hyperparameters(ignore=["net"])
        self.place = place
        setattr(self, place, net)

    def training_step(self, batch, index):
        x, y = batch
        loss = torch.nn.functional.cross_entropy(getattr(self, self.place)(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 1e-3, 0.9)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)]


def train(out: Path, name: str, place: str, prefix: str, **settings) -> None:
    net = STDCSeg("stdc1", 7, classifier_bias=True)
    corpus.randomise(net)
    x, y = torch.randn(4, 3, 64, 96), torch.randint(0, 7, (4, 64, 96))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=2)
    folder = out / "lightning"
    saver = pl.callbacks.ModelCheckpoint(dirpath=folder, filename="{epoch}", save_last=True, monitor="loss")
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[saver, pl.callbacks.EarlyStopping("loss")],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(place, net, **settings), loader)
    path = out / name
    (folder / "last.ckpt").rename(path)
    shutil.rmtree(folder)
    raw = torch.load(path, map_location="cpu", weights_only=False)
    net.load_state_dict({k.removeprefix(prefix): v for k, v in raw["state_dict"].items()})
    net = net.double().eval()
    picture = corpus.picture(120, 250)
    with torch.inference_mode():
        inner = torch.from_numpy(picture).double()
        low, full = net.logits8(inner), net(inner)
    corpus.answer(
        path,
        family="official names with plain norms",
        packages=PACKAGES,
        made="pytorch_lightning.Trainer with ModelCheckpoint",
        options=dict(prefix=prefix),
        said=f"keys {sorted(raw)}; hyper_parameters {raw.get('hyper_parameters')!r}"[:1500],
        tensors=sum(not corpus.counts(k) for k in raw["state_dict"]),
        arrays=corpus.segmentation(picture, low.numpy(), full.numpy()),
    )


def main(out: Path) -> None:
    train(out, "lightning_net.ckpt", "net", "net.")
    train(out, "lightning_model.ckpt", "model", "model.")
    train(
        out,
        "lightning_hyperparameters.ckpt",
        "net",
        "net.",
        args=argparse.Namespace(lr=1e-3, root=pathlib.PosixPath("data")),
        root=pathlib.PosixPath("data"),
        started=datetime.datetime(2026, 1, 2, 3, 4, 5),
        took=datetime.timedelta(seconds=5),
        config=OmegaConf.create({"lr": 1e-3, "sizes": [1, 2]}),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
