"""The network as it is, for what no plan may run."""

from __future__ import annotations

import torch
from torch import Tensor

from stdc_fast.freshness import transformed
from stdc_fast.postprocess import label_logits
from stdc_fast.precision import Precision
from stdc_fast.reference.networks import STDCSeg, normalise, upsample


def exporting() -> bool:
    """Whether torch.export or torch.onnx writes a model down."""
    return torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()


class Published:
    """The network as it is, for what no plan may run: training, hooks inside of it, and whoever traces it.

    It runs in the dtype of its parameters; logits are in that of the precision's sums.
    """

    def __init__(self, network: STDCSeg, precision: Precision):
        self.network, self.precision = network, precision

    def logits(self, image: Tensor, seen: tuple[int, int]) -> Tensor:
        """As of :meth:`stdc_fast.backends.base.Executable.logits`."""
        x = image
        if image.dtype == torch.uint8:
            x = normalise(image, self.precision.sums, self.network.mean, self.network.std)
        if x.shape[2:] != seen:
            x = upsample(x, seen)
        x = x.to(next(self.network.parameters()).dtype)
        if torch.compiler.is_compiling() or not transformed():  # batches of vmap know no such order
            x = x.contiguous(memory_format=torch.channels_last)
        if exporting():
            # A file is for other machines: the dtype that is the fastest on this one must not be in it.
            with torch.autocast(x.device.type, enabled=False):
                return self.network.logits8(x).to(self.precision.sums)
        if not torch.compiler.is_compiling():
            return self.network.logits8(x).to(self.precision.sums)
        # The precision of the model counts, whatever autocast it is called under.
        low = self.precision.maps in (torch.float16, torch.bfloat16)
        with torch.autocast(x.device.type, self.precision.maps if low else None, enabled=low):
            return self.network.logits8(x).to(self.precision.sums)

    def labels(self, image: Tensor, size: tuple[int, int], *, seen: tuple[int, int]) -> Tensor:
        """As of :meth:`stdc_fast.backends.base.Executable.labels`."""
        return label_logits(self.logits(image, seen), seen, size, False, self.network.align_corners)[0]
