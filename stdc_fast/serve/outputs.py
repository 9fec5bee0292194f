"""What a client may ask for: label PNG, overlay, JSON or COCO annotations; as bytes with their media type."""

from __future__ import annotations

import base64
import dataclasses
import io
import json

from PIL import Image

from stdc_fast import encode
from stdc_fast.errors import UserError
from stdc_fast.segmentation import Segmentation

#: Media types of pictures, by the names of :data:`stdc_fast.encode.FORMATS`.
TYPES = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
JSON = "application/json"
#: Names of outputs, and the media types that each has.
OUTPUTS = {
    "labels": (TYPES["png"],),
    "overlay": tuple(TYPES.values()),
    "json": (JSON,),
    "coco": (JSON,),
}
#: What a media type in Accept means where no output is named; the first is for clients that take anything.
_MEANS = {JSON: "json", TYPES["png"]: "labels", TYPES["jpg"]: "overlay", TYPES["webp"]: "overlay"}


class NotAcceptable(Exception):
    """Of what there is, nothing is what the client takes."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """One answer.

    Attributes:
        output: one of :data:`OUTPUTS`.
        format: of overlays, one of :data:`TYPES`.
        quality: of overlays in JPEG and WebP, 1 to 100; None for the default.
        alpha: weight of the colours in overlays, 0 to 1.
        legend, side_by_side: of overlays, as for :meth:`Segmentation.overlay`.
        embed: of JSON: "labels" or "colours" to hold that picture too, as a data URL; None for neither.
    """

    output: str = "json"
    format: str = "jpg"
    quality: int | None = None
    alpha: float = 0.55
    legend: bool = False
    side_by_side: bool = False
    embed: str | None = None

    def __post_init__(self) -> None:
        if self.output not in OUTPUTS:
            raise UserError(f"output must be one of {', '.join(OUTPUTS)}, not {self.output!r}")
        if self.embed not in (None, "labels", "colours"):
            raise UserError(f"embed must be labels or colours, not {self.embed!r}")
        if self.embed is not None and self.output != "json":
            raise UserError(f"embed is for output json, not {self.output}; leave it out")
        if self.output == "overlay":
            encode.check_format(self.format, self.quality)
        if self.quality is not None and self.output != "overlay":
            raise UserError(f"quality is for output overlay, not {self.output}; leave it out")
        if not 0 <= self.alpha <= 1:
            raise UserError(f"alpha must lie between 0 and 1, not {self.alpha}")

    @property
    def media_type(self) -> str:
        return TYPES[self.format] if self.output == "overlay" else OUTPUTS[self.output][0]


def negotiate(output: str | None, format: str | None, accept: str | None) -> tuple[str, str]:
    """(output, format) of a request: what is named goes first, then what its Accept header prefers.

    NotAcceptable where Accept excludes what is named, or all that there is. UserError for a format of what
    has none.
    """
    if output is None and format is not None:
        output = "overlay"
    if output in OUTPUTS and output != "overlay" and format is not None:
        raise UserError(f"format is for output overlay, not {output}; leave it out")
    if output is not None:
        kinds = OUTPUTS.get(output, (JSON,))  # an unknown one is refused by Wanted
        if output == "overlay" and format is not None:
            kinds = (TYPES.get(format, "image/*"),)
    else:
        kinds = tuple(_MEANS)
    best = max(kinds, key=lambda kind: _weight(accept, kind))  # of a tie the first
    if not _weight(accept, best):
        raise NotAcceptable(f"there is {', '.join(kinds)}, of which Accept: {accept[:200]} takes none")
    if output is None:
        output = _MEANS[best]
    by_type = {kind: name for name, kind in TYPES.items()}
    return output, format or (by_type.get(best, "jpg") if output == "overlay" else "jpg")


def _weight(accept: str | None, kind: str) -> float:
    """The quality, 0 to 1, that an Accept header gives a media type; its most specific range counts."""
    if accept is None or not accept.strip():
        return 1.0
    group = kind.split("/")[0]
    found: dict[str, float] = {}
    for part in accept.split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = 1.0
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip() == "q":
                try:
                    weight = min(1.0, max(0.0, float(value)))
                except ValueError:
                    weight = 0.0
        found[name] = weight
    for name in (kind, f"{group}/*", "*/*"):
        if name in found:
            return found[name]
    return 0.0


def render(result: Segmentation, wanted: Wanted, remarks: list[str], model: str) -> bytes:
    """The body of an answer. UserError where the package for it is not installed."""
    if wanted.output == "labels":
        return encode.labels(result)
    if wanted.output == "overlay":
        picture = result.overlay(wanted.alpha, wanted.legend, wanted.side_by_side)
        return encode.picture(picture, wanted.format, wanted.quality)
    if wanted.output == "coco":
        return json.dumps(result.to_coco_rle()).encode()
    found = {"model": model, **result.to_dict(), "remarks": remarks}
    if wanted.embed is not None:
        png = encode.labels(result) if wanted.embed == "labels" else _colours(result)
        found["embedded"] = f"data:{TYPES['png']};base64,{base64.b64encode(png).decode('ascii')}"
    return json.dumps(found).encode()


def _colours(result: Segmentation) -> bytes:
    """A PNG of the colours of overlays, alone."""
    picture = Image.fromarray(result.labels).convert("P")
    picture.putpalette([channel for colour in result.classes.shown for channel in colour])
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=encode.COMPRESS_LEVEL)
    return file.getvalue()
