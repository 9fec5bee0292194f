"""What state dicts come in: safetensors, torch archives, pickles, and what training code wraps around them.

Files are told apart by content, never by name. Nothing is executed: pickles are read with
``weights_only=True``.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from stdc_fast.checkpoints.families import State
from stdc_fast.errors import UserError

#: The mark of our safetensors.
FORMAT = "stdc_fast 1"

# Where training code keeps the weights, the preferred first: averaged ones before those of the last step.
_KEYS = ("ema_net", "net", "state_dict", "model")


class _StandIn:
    """Takes the place of what training code pickles beside the weights, such as logs; does nothing."""

    def __init__(self, *_: object):
        pass

    def __setstate__(self, _: object) -> None:
        pass


_STAND_INS = [
    (_StandIn, name)
    for name in (
        "mmengine.logging.history_buffer.HistoryBuffer",
        "numpy.core.multiarray._reconstruct",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar",
        "numpy.ndarray",
        "numpy.dtype",
        "_codecs.encode",
    )
]


@dataclasses.dataclass(frozen=True)
class Content:
    """A state dict without ``module.`` prefixes, our metadata or None, and the name of its container."""

    tensors: State
    metadata: dict[str, object] | None
    container: str


def open_file(path: Path) -> Content:
    """Content of a checkpoint file. UserError, without the file's name, if there is no state dict in it."""
    if path.is_dir():
        raise UserError("is a folder; give a checkpoint file")
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except FileNotFoundError:
        raise UserError("no such file") from None
    except OSError as error:
        raise UserError(f"can not be read ({error.strerror})") from None
    if not head:
        raise UserError("is empty; download or copy it again")
    if head[8:9] == b"{":
        tensors, metadata = _open_safetensors(path)
        return Content(_bare(tensors), metadata, "safetensors")
    if head[:4] == b"PK\x03\x04" or head[:1] == b"\x80":
        return unwrap(_open_pickle(path))
    raise UserError("is neither a torch nor a safetensors file")


def unwrap(content: object, metadata: dict[str, object] | None = None) -> Content:
    """The state dict that ``content`` is or that training code has put into it; UserError if none."""
    container = "state dict"
    if isinstance(content, Mapping):
        for key in _KEYS:
            if isinstance(content.get(key), Mapping):
                container, content = key, content[key]
                break
    tensors = dict(content) if isinstance(content, Mapping) else {}
    if not tensors or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in tensors.items()):
        raise UserError("holds no state dict (names and tensors); give what network.state_dict() returns")
    return Content(_bare(tensors), metadata, container)


def _bare(tensors: State) -> State:
    """Names without what wrappers of modules put before all of them."""
    for prefix in ("module.", "_orig_mod.", "module."):
        if all(k.startswith(prefix) for k in tensors):
            tensors = {k.removeprefix(prefix): v for k, v in tensors.items()}
    return tensors


def _open_safetensors(path: Path) -> tuple[State, dict[str, object] | None]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = file.metadata() or {}
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118, not a dict
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"damaged safetensors file ({error}); copy it again") from None
    if text.get("format") != FORMAT:
        if text.get("format", "").startswith("stdc_fast"):
            raise UserError(f"has format {text['format']!r}, this version reads {FORMAT!r}")
        return tensors, None
    try:
        return tensors, {k: json.loads(v) for k, v in text.items() if k != "format"}
    except json.JSONDecodeError as error:
        raise UserError(f"damaged metadata ({error})") from None


def _open_pickle(path: Path) -> object:
    try:
        # By path, torch would go by the suffix.
        with open(path, "rb") as file, torch.serialization.safe_globals(_STAND_INS):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive raises many types
        text = str(error).strip()
        found = re.search(r"GLOBAL ([\w.]+) (was not|whose module)", text)
        if found:
            raise UserError(
                f"holds Python objects ({found[1]}) that could run code on loading; save the bare "
                "weights where it came from: torch.save(model.state_dict(), file)"
            ) from None
        if "TorchScript" in text:
            raise UserError("is a TorchScript archive; give the state dict") from None
        # What the unpickler says is advice to load without weights_only.
        broken = isinstance(error, pickle.UnpicklingError) or not text
        first = "broken pickle" if broken else text.split("\n")[0].split(". ")[0]
        raise UserError(f"damaged or not a torch checkpoint ({first}); copy it again") from None
