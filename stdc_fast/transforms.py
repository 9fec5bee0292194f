"""What a network's images need before it sees them, as :meth:`stdc_fast.Segmenter.predict` prepares them."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from stdc_fast import images
from stdc_fast.errors import UserError
from stdc_fast.input_size import InputSize
from stdc_fast.placement import on_cpu
from stdc_fast.reduction import reduced
from stdc_fast.reference.networks import MEAN, STD, normalise, upsample
from stdc_fast.samples import check_normalised


@dataclasses.dataclass(frozen=True)
class Transforms:
    """A picture to the normalised tensor that a network takes; ``model.transforms`` has those of a model.

        x = model.transforms(image)[None]
        labels = model(x).argmax(1)

    Where the network sees the image at its own size, these labels are those of ``predict``, but for rounding
    in bfloat16. Elsewhere they have the size that the network sees, and those of ``predict`` the image's.

    Attributes:
        input_size: to what images are resized where a call does not say.
        mean, std: RGB of 0..1.
    """

    input_size: InputSize = dataclasses.field(default_factory=InputSize)
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD

    @on_cpu
    @torch.no_grad()
    def __call__(
        self,
        image: object,
        *,
        scale: float | None = None,
        size: str | tuple[int, int] | None = None,
        bgr: bool = False,
        range: tuple[float, float] | None = None,
    ) -> Tensor:
        """Normalised float32 ``[3, h, w]``, of a batch ``[N, 3, h, w]``, on the image's device.

        Args:
            image: a path, address, an image file's bytes, or one open for them; a PIL image, an array
                ``[H, W, 3]`` or ``[H, W]``, a tensor of raw uint8 or normalised floats as for ``predict``; or
                a batch of one size, an array ``[N, H, W, 3]`` or a
                tensor of 4 dimensions.
            scale, size, bgr, range: as for :meth:`stdc_fast.Segmenter.predict`.

        UserError for what ``predict`` refuses, and for several images that are not one batch.
        """
        batch = isinstance(image, (np.ndarray, Tensor)) and image.ndim == 4
        items, several = images.iterate(images.opened(image), bgr, range)
        if several and not batch:
            raise UserError("transforms are for one image, or a batch of one size; call them for each")
        named = list(items)
        opened = [images.open_item(item, name, bgr, range) for name, item in named]
        if not opened:
            raise UserError("a batch of no images has no size; give at least one")
        for x, (name, _) in zip(opened, named, strict=True):
            if isinstance(x, Tensor):
                check_normalised(x, name, self.mean, self.std)
        if isinstance(opened[0], np.ndarray):
            frames = torch.from_numpy(np.stack(opened))
            height, width = frames.shape[1:3]
            x = self._seen(frames, height, width, scale, size)
        else:
            frames = torch.stack(opened)
            x = self._seen(frames.float(), *frames.shape[2:], scale, size)
        x = x.to(image.device) if isinstance(image, Tensor) else x
        return x if batch else x[0]

    def _seen(self, x: Tensor, height: int, width: int, scale: float | None, size: object) -> Tensor:
        seen = self.input_size.resolve(height, width, scale, size)
        x = reduced(x, seen)
        if x.dtype == torch.uint8:
            x = normalise(x, torch.float32, self.mean, self.std)
        return upsample(x, seen) if x.shape[2:] != seen else x.contiguous()

    def describe(self) -> str:
        """All that is done to an image, in words."""
        size = self.input_size
        if size.short_side is not None:
            resized = f"resized until the shorter side has {size.short_side} pixels"
        else:
            resized = "left at its size" if size.scale == 1.0 else f"resized by {size.scale}"
        return (
            "The image is turned as its EXIF orientation says, and brought to sRGB of 8 bits. A side more "
            "than twice as long as wanted is averaged by a whole factor. Values of 0..1 are normalised by "
            f"mean {list(self.mean)} and deviation {list(self.std)}. The image is {resized}, bilinearly with "
            "align_corners."
        )
