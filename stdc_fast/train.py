"""Training: one resumable loop for one or several processes, on CPU or GPU.

Start it with ``stdc-fast train``, or on several GPUs with ``torchrun --nproc-per-node N -m stdc_fast
train``. A run's folder holds ``last.pt`` (everything needed to go on), ``best.safetensors`` (the
averaged weights with the best validation mIoU), ``train.csv``, ``val.csv`` and ``config.json``. A run that
trains on ``val`` too has nothing to validate on: instead of ``best.safetensors`` and ``val.csv`` it leaves
``averaged.safetensors``, the averaged weights of its last save.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import dataclasses
import functools
import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from stdc_fast import checkpoints, datasets, files, info, start
from stdc_fast.data import Augmentation, TrainingStream
from stdc_fast.errors import UserError
from stdc_fast.evaluation import check_sizes, evaluate
from stdc_fast.images import normalise
from stdc_fast.processes import Process, processes
from stdc_fast.protocol import Protocol
from stdc_fast.recipe import TrainConfig, amp_dtype, optimizer
from stdc_fast.reference import LossTerms, OhemCrossEntropy, SegmentationLoss, STDCSeg
from stdc_fast.segmenter import Segmenter

BEST, UNVALIDATED = "best.safetensors", "averaged.safetensors"


class Average:
    """Exponential moving average of parameters and norm statistics, without the first steps' bias."""

    def __init__(self, network: nn.Module, decay: float):
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, iteration: int) -> None:
        decay = min(self.decay, (1 + iteration) / (10 + iteration))
        mine, theirs = [], []
        for a, b in zip(_tensors(self.network), _tensors(network), strict=True):
            if a.is_floating_point():
                mine.append(a)
                theirs.append(b.detach())
            else:
                a.copy_(b)
        torch._foreach_lerp_(mine, theirs, 1 - decay)


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]


class _Log:
    """A CSV file that a resumed run continues: rows after its iteration are dropped."""

    def __init__(self, path: Path, fields: list[str], iteration: int):
        rows = []
        if path.is_file() and iteration > 0:
            with open(path, newline="") as file:
                rows = [r for r in csv.DictReader(file) if int(r["iteration"]) <= iteration]

        def write(temporary: Path) -> None:
            with open(temporary, "w", newline="") as file:
                writer = csv.DictWriter(file, fields)
                writer.writeheader()
                writer.writerows(rows)

        files.write_atomic(path, write)
        with files.write_errors(path):
            self._file = open(path, "a", newline="")  # noqa: SIM115, closed by close()
        self._writer = csv.DictWriter(self._file, fields)

    def add(self, row: dict[str, object]) -> None:
        self._writer.writerow(row)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def train(
    config: TrainConfig,
    data: str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    backbone: str | Path | None = None,
    init: str | Path | None = None,
    device: str = "auto",
    workers: int = 0,
    quiet: bool = False,
    check_all: bool = False,
) -> float | None:
    """Train, or go on with, a run in the folder ``out``.

    Returns the best mIoU (0..1) on the split ``val``, or None where the recipe trains on ``val`` too.

    Args:
        config: the recipe; a resumed run must have the same.
        data: folder of a data set with the recipe's splits and ``val``, see :func:`stdc_fast.open_folder`.
        out: the run's folder.
        resume: go on from ``out/last.pt`` (start anew if there is none yet).
        backbone: checkpoint whose backbone a new run starts from (ImageNet or segmentation weights).
        init: segmentation checkpoint that a new run starts from as a whole; the last layer only if it has the
            data's classes. Instead of ``backbone``.
        device: "auto", "cpu" or "cuda".
        workers: processes that augment; 0 does it in the training process.
        check_all: read every image and label before the first iteration; otherwise all headers, all labels
            to train on, and a sample of those to validate on.
        quiet: no progress bar, and no line about what the run starts from or validates on.

    Raises UserError for a folder that already holds a run, a different recipe, or bad data.
    Interrupted by SIGINT or SIGTERM it saves ``last.pt`` first, then raises KeyboardInterrupt.
    """
    with processes(device) as process:
        run = Run(config, Path(data), Path(out), resume, process, workers, backbone, init, check_all)
        try:
            return run.loop(quiet)
        finally:
            run.close()


def _crop_of_sample(config: TrainConfig, per_iteration: int, k: int) -> tuple[int, int]:
    return config.crop_at(k // per_iteration)


class _Caught(torch.utils.data.Dataset):
    """Hands a UserError over as a value: raised in a worker, it would come wrapped in a traceback."""

    def __init__(self, dataset: TrainingStream):
        self.dataset = dataset

    def __getitem__(self, k: int) -> tuple[Tensor, Tensor] | UserError:
        try:
            return self.dataset[k]
        except UserError as error:
            return error


def _collate(samples: list) -> list[Tensor] | UserError:
    bad = next((s for s in samples if isinstance(s, UserError)), None)
    return bad or torch.utils.data.default_collate(samples)


class Run:
    """The state of one training run."""

    def __init__(
        self,
        config: TrainConfig,
        data: Path,
        out: Path,
        resume: bool,
        process: Process,
        workers: int,
        backbone: str | Path | None = None,
        init: str | Path | None = None,
        check_all: bool = False,
    ):
        self.config, self.out, self.process, self.workers = config, out, process, workers
        if backbone is not None and init is not None:
            raise UserError("init takes the backbone too; give either init or backbone")
        self.folder = datasets.open_folders(data, config.splits)
        self.val = None if "val" in config.splits else datasets.open_folder(data, "val")
        classes = self.folder.classes
        if self.val is not None and self.val.classes != classes:
            raise UserError(f"{data}: {config.splits[0]} and val have different classes")
        last = out / "last.pt"
        if last.is_file() and not resume:
            raise UserError(f"{out}: holds a run already; add --resume, or choose another folder")
        histograms = datasets.check_training(self.folder, self.val, everything=check_all, seed=config.seed)
        if self.val is not None:
            check_sizes(self.val, Protocol(scale=config.eval_scale))
        torch.manual_seed(config.seed)
        network = STDCSeg(config.variant, len(classes), training_heads=True)
        self.notes: list[str] = []
        if backbone is not None:
            start.load_backbone(network, backbone)
        if init is not None:
            self.notes.append(start.load_whole(network, init, classes))
        if self.val is None:
            self.notes.append(f"trains on val, so nothing is validated; {UNVALIDATED} is of the last save")
        network = network.to(process.device, memory_format=torch.channels_last)
        if process.world > 1 and process.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        self.network = network
        self.average = Average(network, config.ema)
        self.amp = amp_dtype(config, process.device)
        # Fused SGD starts with undefined momentum where the scaler skips the first step.
        self.optimizer = optimizer(config, network, fused=self.amp != torch.float16)
        self.scaler = torch.amp.GradScaler(process.device.type, enabled=self.amp == torch.float16)
        self.iteration, self.best = 0, -1.0
        self.origin = {k: Path(v).name if v else None for k, v in (("backbone", backbone), ("init", init))}

        if last.is_file():
            self._load(last)
        if process.main:
            text = json.dumps(dataclasses.asdict(config), indent=1) + "\n"
            files.write_atomic(out / "config.json", lambda p: p.write_text(text))

        weights = None
        if config.class_weights > 0:
            share = histograms.sum(0) / histograms.sum()
            raw = 1 / np.log(config.class_weights + share)
            weights = torch.tensor(raw / raw.mean(), dtype=torch.float32)
        ohem = OhemCrossEntropy(config.ohem_threshold, config.ohem_min_kept, weights)
        loss = SegmentationLoss(ohem, config.aux_weight, config.detail_weight, stride=config.loss_stride)
        self.loss = loss.to(process.device)
        self.stream = TrainingStream(
            self.folder,
            histograms,
            Augmentation(config.scales, config.aspect, config.balance, config.appearance),
            functools.partial(_crop_of_sample, config, config.batch * process.world),
            config.seed,
        )
        self.logs: list[_Log] = []
        if process.main:
            fields = ["iteration", "seconds", "lr", *LossTerms._fields]
            self.train_log = _Log(out / "train.csv", fields, self.iteration)
            self.logs = [self.train_log]
            if self.val is not None:
                self.val_log = _Log(out / "val.csv", ["iteration", "miou", *classes.names], self.iteration)
                self.logs.append(self.val_log)

    def close(self) -> None:
        for log in self.logs:
            log.close()

    def loop(self, quiet: bool = False) -> float | None:
        """Run to the end of the schedule; returns the best validation mIoU, None without validation."""
        config, process = self.config, self.process
        model: nn.Module = self.network
        if process.world > 1:
            ids = [process.device.index] if process.device.type == "cuda" else None
            model = nn.parallel.DistributedDataParallel(model, device_ids=ids)
        model.train()
        stop = _stop_requests()
        quiet = quiet or not process.main
        bar = tqdm(total=config.iterations, initial=self.iteration, unit="it", disable=quiet or None)
        started, sums, count = time.monotonic(), np.zeros(len(LossTerms._fields)), 0
        with bar, stop as requested:
            for line in () if quiet else self.notes:
                bar.write(line, sys.stderr)
            for images, labels in self._batches():
                terms = self._step(model, images, labels)
                self.iteration += 1
                bar.update()
                sums += [float(t.detach()) for t in terms]
                count += 1
                if not np.isfinite(sums).all():
                    self._diverged("the loss is")
                done = self.iteration == config.iterations
                if self.iteration % 50 == 0 or done:
                    self._log(sums / count, time.monotonic() - started)
                    best = {} if self.val is None else {"best": f"{self.best:.4f}"}
                    bar.set_postfix(loss=f"{sums[0] / count:.3f}", **best)
                    started, sums, count = time.monotonic(), np.zeros(len(LossTerms._fields)), 0
                if self.val is not None and (self.iteration % config.val_every == 0 or done):
                    self._validate()
                    model.train()
                stopping = self._any(bool(requested))
                if self.iteration % config.save_every == 0 or done or stopping:
                    self._save()
                if stopping:
                    if process.main:
                        bar.write(f"stopped at iteration {self.iteration}; go on with --resume", sys.stderr)
                    raise KeyboardInterrupt
        return None if self.val is None else self.best

    def _diverged(self, what: str) -> None:
        raise UserError(
            f"{what} not finite at iteration {self.iteration}; start a new run with a lower learning rate "
            f"than {self.config.lr} or a longer warm-up than {self.config.warmup}"
        )

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        config, process = self.config, self.process
        order = [
            (i * process.world + process.rank) * config.batch + j
            for i in range(self.iteration, config.iterations)
            for j in range(config.batch)
        ]
        loader = torch.utils.data.DataLoader(
            _Caught(self.stream),
            config.batch,
            sampler=order,
            collate_fn=_collate,
            num_workers=self.workers,
            pin_memory=process.device.type == "cuda",
            persistent_workers=self.workers > 0,
        )
        for item in loader:
            if isinstance(item, UserError):
                raise item
            images, labels = item
            yield (
                normalise(images.to(process.device, non_blocking=True)),
                labels.to(process.device, torch.int64, non_blocking=True),
            )

    def _step(self, model: nn.Module, images: Tensor, labels: Tensor):
        rate = self.config.lr_at(self.iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(self.process.device.type, self.amp, enabled=self.amp is not None):
            output = model(images)
        late = self.iteration >= self.config.jaccard_from
        self.loss.jaccard_weight = self.config.jaccard_weight if late else 0.0
        terms = self.loss(output, labels)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(terms.total).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.average.update(self.network, self.iteration)
        return terms

    def _any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.process.world == 1:
            return flag
        total = torch.tensor([float(flag)], device=self.process.device)
        dist.all_reduce(total)
        return bool(total.item())

    def _log(self, means: np.ndarray, seconds: float) -> None:
        if self.process.main:
            row = {n: f"{v:.5f}" for n, v in zip(LossTerms._fields, means, strict=True)}
            rate = f"{self.config.lr_at(self.iteration - 1):.3e}"
            self.train_log.add({"iteration": self.iteration, "seconds": f"{seconds:.1f}", "lr": rate, **row})

    def _validate(self) -> None:
        network, process = self.average.network, self.process
        if process.world > 1:
            # On CPUs each process has norm statistics of its own; score the ones that are saved.
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)
        model = Segmenter(network, self.folder.classes)
        mine = range(process.rank, len(self.val), process.world)
        with torch.autocast(process.device.type, self.amp, enabled=self.amp is not None):
            confusion = evaluate(model, self.val, scale=self.config.eval_scale, indices=mine)
        if process.world > 1:
            total = torch.from_numpy(confusion.matrix).to(process.device)
            dist.all_reduce(total)
            confusion.matrix = total.cpu().numpy()
        miou = confusion.miou()
        if self.process.main:
            iou = dict(zip(self.folder.classes.names, confusion.iou().round(4), strict=True))
            self.val_log.add({"iteration": self.iteration, "miou": f"{miou:.4f}", **iou})
        if miou > self.best:
            self.best = miou
            if self.process.main:
                score = {"miou": round(miou, 6), "miou_split": f"val, {len(self.val)} images"}
                self._save_average(BEST, score)

    def _metadata(self) -> dict[str, object]:
        """What there is to know of the averaged weights, but for their score."""
        config = self.config
        return {
            "variant": config.variant,
            "classes": self.folder.classes.names,
            "palette": self.folder.classes.palette,
            "short_side": round(config.eval_scale * self._short_side),
            "splits": config.splits,
            "iteration": self.iteration,
            "recipe": dataclasses.asdict(config) | {"processes": self.process.world},
            **self.origin,
            "commit": info.commit(),
            "torch": torch.__version__,
        }

    def _save_average(self, name: str, score: dict[str, object]) -> None:
        """Write the averaged weights for inference, with ``score`` among the metadata."""
        metadata = self._metadata() | score
        checkpoints.save(checkpoints.inference_state(self.average.network), self.out / name, metadata)

    @functools.cached_property
    def _short_side(self) -> float:
        """Typical length of the shorter side of the images to validate on, or to train on, in pixels."""
        sides = []
        for path in (self.val or self.folder).images:
            with Image.open(path) as image:
                sides.append(min(image.size))
        return float(np.median(sides))

    def _save(self) -> None:
        if not self.process.main:
            return
        if not all(torch.isfinite(p).all() for p in self.network.parameters()):
            self._diverged("the weights are")
        state = {
            "config": dataclasses.asdict(self.config),
            "world": self.process.world,
            "classes": list(self.folder.classes.names),
            "iteration": self.iteration,
            "best": self.best,
            "network": self.network.state_dict(),
            "average": self.average.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "metadata": json.loads(json.dumps(self._metadata())),
        }

        def write(path: Path) -> None:
            with open(path, "wb") as file:  # a file's errors are the system's; torch has others
                torch.save(state, file)

        files.write_atomic(self.out / "last.pt", write)
        if self.val is None:
            self._save_average(UNVALIDATED, {})

    def _load(self, path: Path) -> None:
        try:
            state = torch.load(path, map_location=self.process.device, weights_only=True)
        except Exception as error:  # torch.load raises many types on a damaged file
            raise UserError(f"{path}: not a readable training state ({error})") from None
        mine = dataclasses.asdict(self.config)
        mine |= {"world": self.process.world, "classes": list(self.folder.classes.names)}
        # A run from before an option had it off.
        theirs = dataclasses.asdict(TrainConfig()) | state["config"]
        theirs |= {k: state.get(k) for k in ("world", "classes")}
        different = [k for k in mine if mine[k] != theirs.get(k)]
        if different:
            values = ", ".join(f"{k} was {theirs.get(k)}, is {mine[k]}" for k in different)
            raise UserError(f"{path}: can not resume with another recipe: {values}")
        self.network.load_state_dict(state["network"])
        self.average.network.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.iteration, self.best = state["iteration"], state["best"]


@contextlib.contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying in the middle of an iteration."""
    received: list[int] = []
    previous = {}

    def stop(number: int, _: object) -> None:
        received.append(number)
        signal.signal(number, previous[number])  # a second one ends the process at once

    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError):  # not in the main thread: leave signals alone
            previous[number] = signal.signal(number, stop)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
