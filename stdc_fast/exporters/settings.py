"""What an exported network takes and gives, and what of it a format can not hold."""

from __future__ import annotations

import dataclasses

from stdc_fast import images
from stdc_fast.errors import UserError
from stdc_fast.exporters.formats import Format
from stdc_fast.reduction import factors

#: What the network reads, by the name of the setting.
INPUTS = {
    "normalised": "float32 [N, 3, H, W], (RGB / 255 - mean) / std",
    "nhwc": "raw frames, uint8 RGB [N, H, W, 3]",
    "nchw": "raw frames, uint8 RGB [N, 3, H, W]",
}
#: What it gives.
OUTPUTS = {
    "logits": "float32 [N, C, H, W]",
    "logits8": "float32 [N, C, ceil(H / 8), ceil(W / 8)]",
    "labels": "uint8 [N, H, W]",
}
#: Of opset versions of ONNX: Resize with axes on the one side, what the tested runtimes read on the other.
OPSETS = range(18, 24)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a network is exported.

    Attributes:
        dtype: of weights and maps; inputs and logits of the file are float32 in any case.
        size: (H, W) that the network sees; None for every size.
        batch: images at once; None for any number.
        input: one of :data:`INPUTS`.
        output: one of :data:`OUTPUTS`.
        frame: (H, W) of the image, where it is not ``size``: it is resized in the graph, and so are logits.
        opset: of ONNX.
        compiled: of torch: machine code for this processor, by AOTInductor.
    """

    dtype: str = "float32"
    size: tuple[int, int] | None = None
    batch: int | None = 1
    input: str = "normalised"
    output: str = "logits"
    frame: tuple[int, int] | None = None
    opset: int = 18
    compiled: bool = False

    @property
    def raw(self) -> bool:
        return self.input != "normalised"

    @property
    def image(self) -> tuple[int, int] | None:
        """(H, W) of what is read, and of logits and labels; None for every size."""
        return self.frame or self.size

    @property
    def output_name(self) -> str:
        return "labels" if self.output == "labels" else "logits"

    def check(self, form: Format, classes: int) -> None:
        """UserError unless a format can hold a network of so many classes like this."""
        if self.dtype == "int8" and self.dtype not in form.dtypes:
            raise UserError(
                f"format {form.name} has no int8, only onnx and plans have; use {' or '.join(form.dtypes)}"
            )
        if self.dtype not in form.dtypes:
            raise UserError(f"format {form.name} has dtype {' or '.join(form.dtypes)}, not {self.dtype!r}")
        for value, known, name in ((self.input, INPUTS, "input"), (self.output, OUTPUTS, "output")):
            if not (isinstance(value, str) and value in known):
                raise UserError(f"{name} must be one of {', '.join(known)}, not {value!r}")
        for value, name in ((self.size, "size"), (self.frame, "frame")):
            if value is not None and not (
                isinstance(value, tuple)
                and len(value) == 2
                and all(type(side) is int for side in value)
                and images.is_possible(*value)
            ):
                raise UserError(f"{name} {value!r}: (height, width) with {images.LIMITS}")
        if self.batch is not None and not (type(self.batch) is int and 1 <= self.batch <= 1024):
            raise UserError(f"batch must be a number from 1 to 1024, or None for any, not {self.batch!r}")
        if type(self.opset) is not int or self.opset not in OPSETS:
            raise UserError(f"opset must be {OPSETS[0]} to {OPSETS[-1]}, not {self.opset!r}")
        if self.compiled and form.name != "torch":
            raise UserError(f"only format torch is compiled, not {form.name}; leave compiled out")
        self._check_graph(form)
        if self.output == "labels" and classes > 256:
            raise UserError(f"labels are uint8, which {classes} classes exceed; export logits")

    def _check_graph(self, form: Format) -> None:
        given = dataclasses.replace(self, dtype="float32")
        if not form.graph:
            if given != dataclasses.replace(Settings(), batch=given.batch):
                raise UserError(
                    f"format {form.name} has the network for every size and all that it reads and gives; "
                    "leave size, input, output, frame and opset out"
                )
            return
        if self.dtype == "int8" and (self.size is None or self.batch is None):
            raise UserError(
                "int8 in onnx serves one size and one batch; give both, for example 512x1024 and 1"
            )
        if self.opset != Settings.opset and form.name != "onnx":
            raise UserError(f"opset {self.opset} is for format onnx; leave it out")
        if self.size is None and not form.any_size:
            raise UserError(f"a file of format {form.name} serves one size; give it, for example 512x1024")
        if self.batch is None and not form.any_size:
            raise UserError(f"a file of format {form.name} serves one batch; give its number of images")
        if form.name == "ncnn" and self.batch != 1:
            raise UserError(f"ncnn has no batches; batch {self.batch} must be 1")
        if not form.frames and (self.raw or self.output == "labels"):
            raise UserError(
                f"{form.name} has no layers for raw frames and argmax; use input normalised and output logits"
            )
        if self.frame is None:
            return
        if self.size is None:
            raise UserError("frame needs size, which says what the network sees of it")
        if self.output == "logits8":
            raise UserError("frame says the size of logits, so output logits8 contradicts it; use logits")
        if factors(self.frame, self.size) != (1, 1):
            (h, w), (height, width) = self.size, self.frame
            raise UserError(
                f"a frame of {height}x{width} is more than twice a size of {h}x{w}, so that interpolation "
                "skips pixels; choose a larger size, or average frames before"
            )
