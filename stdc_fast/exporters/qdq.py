"""ONNX in 8 bits, in QDQ form, by ONNX Runtime's static quantisation."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from stdc_fast.calibration.frames import Frames, choose
from stdc_fast.errors import UserError
from stdc_fast.exporters.converters import quiet
from stdc_fast.hardware import cpu

#: Pictures that ranges are taken from, drawn by :data:`SEED` where there are more.
COUNT, SEED = 32, 0


def frames_of(source: object) -> Frames:
    """Pictures to calibrate on, as ``load(calibrate=...)`` takes them."""
    return choose(source, COUNT, SEED)


def shown(frames: Frames, size: tuple[int, int]) -> Iterable[torch.Tensor]:
    """Each picture as a frame uint8 ``[1, H, W, 3]`` of that size. UserError for one that is none."""
    for name, image in frames.opened():
        if not isinstance(image, np.ndarray):
            raise UserError(f"{name}: is normalised; exports in 8 bits are calibrated on pictures")
        if image.min() == image.max():
            raise UserError(f"{name}: is of one colour, which gives no ranges; leave it out")
        height, width = size
        picture = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        yield torch.from_numpy(np.array(picture))[None]


def sums_overflow() -> bool:
    """Whether the processor adds two products of 8 bits in 16, so that weights must have 7."""
    return cpu()["machine"] in ("x86_64", "AMD64") and "avx512_vnni" not in cpu()["features"]


def quantise(plain: Path, path: Path, samples: Iterable[np.ndarray]) -> None:
    """Write the graph of ``plain``, of one size, with ranges from what its input ``image`` was.

    Maps are uint8, which keeps a dense concatenation in 8 bits; weights int8, by channel. On processors whose
    sums would overflow they have 7 bits.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready = path.with_name("ready.onnx")
    left = iter(samples)

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            sample = next(left, None)
            return None if sample is None else {"image": sample}

    with quiet():
        quant_pre_process(str(plain), str(ready))
        quantization.quantize_static(
            str(ready),
            str(path),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=sums_overflow(),
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
    made = onnx.load(str(path))
    if not made.metadata_props:  # which names classes and normalisation
        made.metadata_props.extend(onnx.load(str(plain)).metadata_props)
        onnx.save(made, str(path))
    ready.unlink()
