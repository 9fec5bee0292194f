"""Turns ncnn's files of a network into those of its 8-bit form: ncnn's own tools for it are not in its wheel.

Those are ``ncnn2table`` and ``ncnn2int8``. ncnn quantises float32 weights itself when it loads a layer whose
file has scales, so scales are all that is added here. As in the tools, maps have one scale, weights one for
each output channel, and a convolution that only convolutions read writes 8 bits. Ranges are the greatest
absolute values seen, where the tools' default cuts off rare ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

#: Levels of a sign; and of weights of a 3x3 with stride 1, whose tiles of Winograd's are in 8 bits, too.
LEVELS, WINOGRAD_LEVELS = 127, 31


@dataclasses.dataclass(frozen=True)
class Layer:
    """A line of a ``.param`` file: type, name, tensors read and written, parameters by number."""

    kind: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    params: dict[str, str]

    @classmethod
    def parse(cls, line: str) -> Layer:
        kind, _, bottoms, tops, *rest = line.split()
        first, last = int(bottoms), int(bottoms) + int(tops)
        params = dict(text.split("=", 1) for text in rest[last:])
        return cls(kind, tuple(rest[:first]), tuple(rest[first:last]), params)

    def number(self, key: str, default: int = 0) -> int:
        return int(self.params.get(key, default))

    @property
    def convolves(self) -> bool:
        return self.kind in ("Convolution", "ConvolutionDepthWise")

    @property
    def quantised(self) -> bool:
        return self.convolves or self.kind == "InnerProduct"

    @property
    def stored(self) -> bool:
        """Whether it has weights."""
        return self.quantised or self.kind in ("Deconvolution", "DeconvolutionDepthWise")

    @property
    def weights(self) -> int:
        return self.number("2" if self.kind == "InnerProduct" else "6")

    @property
    def biases(self) -> int:
        return self.number("0") * self.number("1" if self.kind == "InnerProduct" else "5")

    @property
    def scales(self) -> int:
        """How many scales the weights have."""
        return self.number("7") if self.kind == "ConvolutionDepthWise" else self.number("0")

    @property
    def levels(self) -> int:
        square = self.number("1") == self.number("11", self.number("1")) == 3
        plain = self.number("2", 1) == self.number("3", 1) == self.number("13", self.number("3", 1)) == 1
        return WINOGRAD_LEVELS if self.kind == "Convolution" and square and plain else LEVELS


def quantise(param: Path, ranges: Callable[[list[str]], dict[str, float]]) -> None:
    """Add scales to a network's two files, in place.

    Args:
        param: file; the weights, in float32, are beside it as ``.bin``.
        ranges: from tensors' names to their greatest absolute values.

    RuntimeError if the weights are not laid out as layers of these kinds have them.
    """
    lines = param.read_text().splitlines()
    head, layers = lines[:2], [Layer.parse(line) for line in lines[2:]]
    inputs = dict.fromkeys(layer.bottoms[0] for layer in layers if layer.quantised)
    seen = ranges(list(inputs))
    raw, made, start = param.with_suffix(".bin").read_bytes(), [], 0
    for i, layer in enumerate(layers):
        if not layer.stored:
            continue
        end = start + 4 * (1 + layer.weights + layer.biases)
        if raw[start : start + 4] != bytes(4) or end > len(raw):  # the tag of float32
            raise RuntimeError(f"ncnn: the weights of {lines[2 + i].split()[1]} are not where they should be")
        made.append(raw[start:end])
        start, first = end, start + 4
        if not layer.quantised:
            continue
        weights = np.frombuffer(raw, "<f4", layer.weights, first).reshape(layer.scales, -1)
        read = layer.bottoms[0]
        scales = [*_scales(np.abs(weights).max(1), layer.levels), *_scales([seen[read]], LEVELS)]
        term = 1 if layer.kind == "ConvolutionDepthWise" else 2
        following = _reader(layer, layers) if layer.convolves else None
        if following is not None:
            term += 100
            scales += [*_scales([seen[following]], LEVELS)]
        made.append(np.array(scales, "<f4").tobytes())
        lines[2 + i] += f" 8={term}"
    if start != len(raw):
        raise RuntimeError(f"ncnn: {len(raw) - start} bytes of weights belong to layers of other kinds")
    param.write_text("\n".join([*head, *lines[2:], ""]))
    param.with_suffix(".bin").write_bytes(b"".join(made))


def _scales(ranges: Iterable[float], levels: int) -> list[float]:
    """Levels a unit; nothing but zeros has any."""
    return [levels / value if value else 1.0 for value in map(float, ranges)]


def _reader(layer: Layer, layers: list[Layer]) -> str | None:
    """What the convolutions read that are all that reads a layer's output; None where others do, too."""
    (written,) = layer.tops
    readers = [other for other in layers if written in other.bottoms]
    if len(readers) == 1 and readers[0].kind == "Split":
        readers = [other for top in readers[0].tops for other in layers if top in other.bottoms]
    if not readers or not all(other.convolves for other in readers):
        return None
    return readers[0].bottoms[0]
