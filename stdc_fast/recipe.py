"""A training recipe: sizes, schedules, optimiser and precision."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from stdc_fast.appearance import Appearance
from stdc_fast.errors import UserError
from stdc_fast.reference.networks import STAGES


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training recipe. Sizes are (H, W) in pixels; ``batch`` is per process.

    The defaults follow the paper (section 4.2): SGD at 0.01 with momentum, poly 0.9, OHEM at 0.7.
    """

    variant: str = "stdc1"
    iterations: int = 60000
    batch: int = 12
    crop: tuple[int, int] = (512, 1024)
    crop_start: tuple[int, int] | None = None
    scales: tuple[float, float] = (0.5, 2.0)
    aspect: float = 0.0
    jitter: float = 0.5
    white_balance: float = 0.0
    gamma: float = 0.0
    hue: float = 0.0
    grey: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    jpeg: float = 0.0
    balance: float = 0.0
    optimizer: str = "sgd"
    lr: float = 0.01
    weight_decay: float = 5e-4
    momentum: float = 0.9
    poly: float = 0.9
    warmup: int = 1000
    ohem_threshold: float = 0.7
    ohem_min_kept: float = 1 / 16
    class_weights: float = 0.0
    aux_weight: float = 1.0
    detail_weight: float = 1.0
    jaccard_weight: float = 0.0
    jaccard_from: int = 0
    loss_stride: int = 1
    ema: float = 0.999
    eval_scale: float = 1.0
    val_every: int = 1000
    save_every: int = 200
    amp: str = "auto"
    seed: int = 0
    splits: tuple[str, ...] = ("train",)

    def __post_init__(self) -> None:
        if self.variant not in STAGES:
            raise UserError(f"unknown network {self.variant!r}; choose one of {', '.join(STAGES)}")
        positive = ("iterations", "batch", "lr", "val_every", "save_every", "loss_stride", "ohem_threshold")
        for name in positive:
            if not getattr(self, name) > 0:  # NaN is not, either
                raise UserError(f"{name} must be positive, not {getattr(self, name)}")
        if self.batch < 2:
            raise UserError("batch must be at least 2: batch norm after global pooling needs two values")
        if self.optimizer not in ("sgd", "adamw"):
            raise UserError(f"unknown optimizer {self.optimizer!r}; choose sgd or adamw")
        # Names of earlier versions, which their runs have stored.
        object.__setattr__(self, "amp", {"bf16": "bfloat16", "fp16": "float16"}.get(self.amp, self.amp))
        if self.amp not in ("auto", "bfloat16", "float16", "off"):
            raise UserError(f"unknown amp {self.amp!r}; choose auto, bfloat16, float16 or off")
        if not 1 / 16 <= self.scales[0] <= self.scales[1] <= 16:
            raise UserError(f"scales must be two growing factors between 1/16 and 16, not {self.scales}")
        for crop in (self.crop, self.crop_start or self.crop):
            if min(crop) < 64 or crop[0] % 32 or crop[1] % 32:
                raise UserError(f"a crop is at least 64x64 and a multiple of 32, not {crop}")
        start = self.crop_start or self.crop
        if start[0] > self.crop[0] or start[1] > self.crop[1]:
            raise UserError(f"crop_start {start} is larger than crop {self.crop}")
        if self.class_weights != 0 and not 1 < self.class_weights <= 100:
            raise UserError(f"class_weights must be 0 (off) or from 1 to 100, not {self.class_weights}")
        if not 0 <= self.warmup < self.iterations:
            raise UserError(f"warmup {self.warmup} must be shorter than the {self.iterations} iterations")
        if not 1 / 16 <= self.eval_scale <= 16:
            raise UserError(f"eval_scale must lie between 1/16 and 16, not {self.eval_scale}")
        most_of = {"jitter": 1, "aspect": 1, "balance": 1, "white_balance": 4, "gamma": 4, "hue": 0.5,
                   "grey": 1, "blur": 16, "noise": 1, "jpeg": 1, "lr": 1e30, "weight_decay": 1, "momentum": 1,
                   "poly": 16, "ohem_threshold": 1, "ohem_min_kept": 1, "aux_weight": 1000,
                   "detail_weight": 1000, "jaccard_weight": 1000, "jaccard_from": self.iterations,
                   "seed": 2**63 - 1}  # fmt: skip
        for name, most in most_of.items():
            if not 0 <= getattr(self, name) <= most:
                raise UserError(f"{name} must lie between 0 and {most}, not {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise UserError(f"ema must lie in [0, 1), not {self.ema}")
        if not self.splits or len(set(self.splits)) < len(self.splits):
            raise UserError(f"splits must be different names, at least one, not {self.splits}")

    @property
    def appearance(self) -> Appearance:
        return Appearance(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Appearance)})

    def crop_at(self, iteration: int) -> tuple[int, int]:
        """Crop size of an iteration: grows in steps of 32 from ``crop_start`` to ``crop``."""
        if self.crop_start is None:
            return self.crop
        done = min(iteration / self.iterations, 1.0)
        return tuple(
            a + 32 * min(int(done * ((b - a) // 32 + 1)), (b - a) // 32)
            for a, b in zip(self.crop_start, self.crop, strict=True)
        )

    def lr_at(self, iteration: int) -> float:
        """Learning rate of an iteration: linear warm-up, then ``lr (1 - t)^poly``."""
        if iteration < self.warmup:
            return self.lr * (iteration + 1) / (self.warmup + 1)
        done = (iteration - self.warmup) / max(self.iterations - self.warmup, 1)
        return self.lr * (1 - done) ** self.poly


def optimizer(config: TrainConfig, network: nn.Module, fused: bool = True) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW; norms and biases are not decayed."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    plain = [p for p in network.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=fused)
    return torch.optim.AdamW(groups, lr=config.lr, fused=fused)


def amp_dtype(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    """The type to compute in, None for float32; "auto" takes the fastest that the device has."""
    if config.amp == "off":
        return None
    if config.amp == "auto":
        if device.type == "cuda":
            return (
                torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
            )
        return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else None
    return torch.bfloat16 if config.amp == "bfloat16" else torch.float16
