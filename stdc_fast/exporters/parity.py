"""The parity check: an exported file, in its real runtime, against the reference network in float32."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stdc_fast.exporters.formats import Format
from stdc_fast.exporters.runners import RUNNERS
from stdc_fast.exporters.settings import Settings
from stdc_fast.exporters.source import Source
from stdc_fast.images import read_image
from stdc_fast.numerics import label_agreement, unexplained
from stdc_fast.reference.networks import normalise, upsample

#: Ours, MIT licence; see NOTICE.
PHOTO = Path(__file__).resolve().parent.parent / "assets" / "street.jpg"
#: Of files that serve every size: the least one, and one whose maps are odd at 1/8, 1/16 and 1/32.
SIZES = ((32, 32), (32, 64), (97, 131), (160, 256))


@dataclasses.dataclass(frozen=True)
class Limit:
    """How far logits may be from the reference's: the largest difference over the largest logit."""

    logits: float
    reason: str


LIMITS = {
    # Seen: 1e-6 of direct convolutions, 2e-4 of Winograd's tiles of 6x6, which MNN has.
    "float32": Limit(1e-3, "2^-24 an operation, by Winograd's largest tiles a thousand times that"),
    "float16": Limit(2e-2, "2^-11 an operation, forty layers deep, at the worst of all pixels"),
    "bfloat16": Limit(1e-1, "2^-8 an operation, forty layers deep, at the worst of all pixels"),
    "int8": Limit(1e-1, "255 steps over the range of a map, at the worst of all pixels"),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        batch, height, width: of the input.
        error: largest difference of logits over the largest logit of the reference; None where there are
            only labels.
        agreement: share of pixels with the reference's label.
        unexplained: pixels with another label, though the limit of logits does not allow one.
    """

    batch: int
    height: int
    width: int
    error: float | None
    agreement: float
    unexplained: int


def shapes(form: Format, settings: Settings) -> list[tuple[int, int, int]]:
    """(batch, H, W) at which a file is checked."""
    batches = [settings.batch] if settings.batch else [1, 2]
    if settings.image is not None:
        return [(batch, *settings.image) for batch in batches]
    found = [(batches[0], *(max(side, form.least) for side in size)) for size in SIZES]
    return found if settings.batch else [*found, (2, *SIZES[2])]


def probe(batch: int, height: int, width: int) -> Tensor:
    """Frames uint8 ``[N, H, W, 3]`` of a real photo; the second is turned around itself, and so on."""
    photo = Image.fromarray(read_image(PHOTO)).resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(
        np.stack([np.roll(np.asarray(photo), i * width // batch, 1) for i in range(batch)])
    )


@torch.inference_mode()
def reference(source: Source, settings: Settings, frames: Tensor) -> Tensor:
    """Logits of the reference network at the output's size, by the published protocol."""
    network = source.network
    x = normalise(frames, torch.float32, network.mean, network.std).contiguous()
    if settings.frame is not None:
        x = upsample(x, settings.size)
    logits = network.logits8(x)
    if settings.output == "logits8":
        return logits
    logits = upsample(logits, x.shape[2:], network.align_corners)
    return logits if settings.frame is None else upsample(logits, settings.frame, network.align_corners)


def image_of(source: Source, form: Format, settings: Settings, frames: Tensor) -> np.ndarray:
    """What the file reads."""
    if form.name == "plan" or settings.input == "nhwc":
        return frames.numpy()
    if settings.input == "nchw":
        return frames.permute(0, 3, 1, 2).contiguous().numpy()
    network = source.network
    return normalise(frames, torch.float32, network.mean, network.std).contiguous().numpy()


def compare(output: np.ndarray, want: Tensor, limit: Limit, shape: tuple[int, int, int]) -> Row:
    """One row; ValueError for another shape, or values that are not finite."""
    got = torch.from_numpy(np.ascontiguousarray(output))
    labels = want.argmax(1)
    scale, error = want.abs().max().item(), None
    if got.is_floating_point():
        if got.shape != want.shape:
            raise ValueError(f"gives logits {list(got.shape)} instead of {list(want.shape)}")
        if not bool(got.isfinite().all()):
            raise ValueError("gives logits that are not finite")
        error = (got.double() - want.double()).abs().max().item() / scale
        got = got.argmax(1)
    if got.shape != labels.shape:
        raise ValueError(f"gives labels {list(got.shape)} instead of {list(labels.shape)}")
    odd = unexplained(got, want, limit.logits * scale)
    return Row(*shape, error, label_agreement(got, labels), odd)


def check(source: Source, form: Format, settings: Settings, path: Path) -> Iterator[Row]:
    """Run a file at its sizes. ValueError, in words, for what is not as the reference has it."""
    run = RUNNERS[form.name](path, settings)
    limit = LIMITS[settings.dtype]
    for shape in shapes(form, settings):
        frames = probe(*shape)
        where = f"at {shape[1]}x{shape[2]}, batch {shape[0]},"
        want = reference(source, settings, frames)
        if not bool(want.isfinite().all()):
            raise ValueError(f"{where} the reference itself gives logits that are not finite")
        try:
            output = run(image_of(source, form, settings, frames))
            row = compare(output, want, limit, shape)
        except ValueError as error:
            raise ValueError(f"{where} it {error}") from None
        if row.error is not None and not row.error <= limit.logits:
            raise ValueError(
                f"{where} logits differ by {row.error:.1e} of the largest, {settings.dtype} allows "
                f"{limit.logits:.0e}; labels agree on {row.agreement:.2%}"
            )
        if row.unexplained:
            raise ValueError(
                f"{where} {row.unexplained} labels differ by more than {settings.dtype} allows; labels agree "
                f"on {row.agreement:.2%}"
            )
        yield row
