"""What state dicts come in: safetensors, torch archives, pickles, and what training code wraps around them.

Files are told apart by content, never by name. Nothing is executed; see :mod:`stdc_fast.checkpoints.pickles`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import safetensors
from torch import Tensor

from stdc_fast.calibration import record
from stdc_fast.checkpoints import sniff
from stdc_fast.checkpoints.archives import damaged, open_archive, open_pickle
from stdc_fast.checkpoints.families import CANONICAL, FAMILIES, State, known_names, recognise
from stdc_fast.checkpoints.pickles import Global, Opaque
from stdc_fast.checkpoints.rebuild import Array, Stored
from stdc_fast.errors import UserError, announce

#: The mark of our safetensors, and those of files which older versions would misread, as they have options,
#: or would not take, as they have ranges. Ranges alone have a mark of their own.
FORMAT, FORMAT_OPTIONS, FORMAT_RANGES, RANGES = (
    "stdc_fast 1",
    "stdc_fast 2",
    "stdc_fast 3",
    "stdc_fast ranges 1",
)

# Where training code keeps the weights, the preferred first: averaged ones before those of the last step.
_KEYS = (
    "ema_net", "params_ema", "model_ema", "state_dict_ema",
    "net", "state_dict", "model_state_dict", "model", "model_state", "params", "network", "weights",
)  # fmt: skip
# What the state of our own training has, last.pt.
_OURS = {"config": Mapping, "classes": list, "iteration": int, "network": Mapping, "average": Mapping}
# Of a state dict, what is no tensor of the network: how many models were averaged; PaddlePaddle's own names.
_BESIDE = ("n_averaged", "StructuredToParameterName@@")
# Characters of a tensor's name.
_LONGEST = 1000
# Elements of all tensors.
_MOST = 1 << 27
# What compiling, sharding and recomputing put into names.
_WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# What training code keeps as modules beside a network, whose tensors the network does not use. No name of one
# has the length at which the pattern takes its time.
_SIDE = re.compile(
    r"(?=.{1,80}$)(\w*_)?(criterion|loss\w*|metrics?|\w*(iou|accuracy|confusion)\w*)$", re.IGNORECASE
)


@dataclasses.dataclass(frozen=True)
class Content:
    """A state dict without prefixes, and what is known of it.

    Attributes:
        tensors: by name.
        metadata: ours, or None.
        container: where in the file the state dict was.
        around: what training code keeps beside the state dict, as plain values.
        versions: version of the module class by the module's name, where torch wrote them down.
        notes: what was passed over on the way.
        unread: names of tensors that only training uses, where they were not wanted.
        calibration: the ranges of the network's maps, where the file has them.
    """

    tensors: State
    metadata: dict[str, object] | None
    container: str
    around: Mapping = dataclasses.field(default_factory=dict)
    versions: Mapping[str, int] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    calibration: record.Calibration | None = None


def open_file(path: Path, whole: bool = True) -> Content:
    """Content of a checkpoint file, with tensors that only training uses if it is to be ``whole``.

    UserError, without the file's name, if there is no state dict in it.
    """
    if path.is_dir():
        raise UserError("is a folder; give a checkpoint file")
    try:
        with open(path, "rb") as file:
            head = file.read(sniff.HEAD)
        if not head:
            raise UserError("is empty; download or copy it again")
        if head[8:9] == b"{":
            return _open_safetensors(path)
        with _opened(path, head) as content:
            return unwrap(content, whole=whole)
    except FileNotFoundError:
        raise UserError("no such file") from None
    except OSError as error:
        raise UserError(f"can not be read ({error.strerror or error})") from None


@contextlib.contextmanager
def _opened(path: Path, head: bytes) -> Iterator[object]:
    if head[:4] == b"PK\x03\x04":
        reader = open_archive
    elif head[:1] == b"\x80":
        reader = open_pickle
    else:
        raise UserError(sniff.what_else(head))
    with reader(path) as content:
        yield content


def unwrap(content: object, metadata: dict[str, object] | None = None, whole: bool = True) -> Content:
    """The state dict that ``content`` is or that training code has put into it; UserError if none.

    ``whole`` is as of :func:`open_file`.
    """
    if metadata is None and isinstance(content, Mapping) and content.keys() >= _OURS.keys() and all(
        isinstance(content[k], kind) for k, kind in _OURS.items()
    ):  # fmt: skip
        return _training_state(content)
    container, around = "state dict", content if isinstance(content, Mapping) else {}
    notes: tuple[str, ...] = ()
    for _ in range(3):
        if metadata is not None or not isinstance(content, Mapping):
            break
        inside = [k for k, v in content.items() if isinstance(k, str) and _holds_state(v)]
        nested = [k for k in _KEYS if isinstance(content.get(k), Mapping) and content[k]]
        chosen = next((k for k in nested if k in inside), nested[0] if nested else None)
        if chosen is None and len(inside) == 1:
            chosen = inside[0]
        if chosen is None:
            if len(inside) > 1 and not _is_state(content):
                raise UserError(
                    f"holds several state dicts ({', '.join(inside)}); save the one to be loaded alone"
                )
            break
        others = [k for k in nested if k != chosen and k in inside]
        notes = (f"{chosen} preferred to {', '.join(others)}",) if others else notes
        container, content = chosen, content[chosen]
    _refuse_others(content)
    versions = getattr(content, "attributes", {}).get("_metadata") or getattr(content, "_metadata", None)
    tensors = {k: v for k, v in content.items() if k not in _BESIDE}
    longest = max(map(len, tensors), default=0)
    if longest > _LONGEST:
        raise UserError(f"has a tensor whose name has {longest} characters, as no network has")
    tensors, prefix, dropped = _bare(_unwrapped(tensors))
    if not whole and metadata is None and not known_names(tensors):
        recognise(tensors)  # which says what it is; no need to read it
    family = None if whole else next((f for f in FAMILIES if f.holds(tensors)), None)
    unread = tuple(k for k in tensors if family.trains_only(k)) if family else ()
    wanted = {k: _tensor(k, v) for k, v in tensors.items() if k not in unread}
    elements = sum(t.numel() for t in wanted.values())
    if elements > _MOST:  # a few bytes may be said to be any number of them
        raise UserError(
            f"has {elements / 1e6:.0f} million weights; the networks that are read have 30 at most"
        )
    return Content(
        wanted,
        metadata,
        container,
        {k: v for k, v in around.items() if v is not content},
        _versions(versions, prefix),
        (*notes, *dropped),
        unread,
    )


def _training_state(content: Mapping) -> Content:
    """Our own ``last.pt``: the averaged weights, with what later runs wrote down of them."""
    written = content.get("metadata") or {
        "variant": content["config"].get("variant"), "classes": content["classes"],
    }  # fmt: skip
    state = {k: v for k, v in content["average"].items() if not CANONICAL.trains_only(k)}
    found = unwrap(state, dict(written))
    return dataclasses.replace(found, container="last.pt", notes=("averaged weights of the last save",))


def _holds_state(value: object) -> bool:
    """Whether it is a state dict, or a mapping that has one under one of the usual keys."""
    return _is_state(value) or (isinstance(value, Mapping) and any(_is_state(value.get(k)) for k in _KEYS))


def _is_state(value: object) -> bool:
    """Whether it is a mapping of names to tensors, for the most part."""
    if not isinstance(value, Mapping) or not value:
        return False
    named = [isinstance(k, str) and isinstance(v, (Tensor, Stored, Array)) for k, v in value.items()]
    return sum(named) * 2 > len(named)


def _refuse_others(content: object) -> None:
    """UserError unless it is a state dict and nothing else."""
    if isinstance(content, Opaque):
        raise UserError(
            f"holds a whole Python object ({content.name}), made by code that is not in it; save the weights "
            "where it came from: torch.save(model.state_dict(), file)"
        )
    if not isinstance(content, Mapping) or not content or not all(isinstance(k, str) for k in content):
        raise UserError("holds no state dict (names and tensors); give what network.state_dict() returns")
    others = {
        k: v for k, v in content.items() if not isinstance(v, (Tensor, Stored, Array)) and k not in _BESIDE
    }
    for key, value in others.items():
        if isinstance(value, (Opaque, Global)):
            what = next((w for part, w in _KINDS if part in value.name), f"made by {value.name}")
            if len(others) < len(content):
                raise UserError(
                    f"{key} is {what}, which is not read; save the weights as plain float tensors"
                )
            raise UserError(
                f"holds a whole Python object ({key}: {value.name}), made by code that is not in it; save "
                "the weights where it came from: torch.save(model.state_dict(), file)"
            )
    if others:
        raise UserError(
            "holds no state dict (names and tensors): "
            f"{next(iter(others))} is no tensor; give what network.state_dict() returns"
        )


_KINDS = (
    ("qtensor", "a quantised tensor"),
    ("sparse", "a sparse tensor"),
    ("nested", "a nested tensor"),
    ("meta_tensor", "a tensor on the meta device, without values"),
    ("wrapper_subclass", "a tensor of a subclass"),
)


def _unwrapped(tensors: Mapping) -> dict:
    """Names without what wrappers of torch put in the middle of them."""
    plain = {_WRAPPERS.sub("", name): value for name, value in tensors.items()}
    if len(plain) < len(tensors):
        raise UserError("holds tensors both wrapped and not; save the state dict of the network alone")
    return plain


def _bare(tensors: Mapping) -> tuple[dict, str, tuple[str, ...]]:
    """(tensors without what wrappers put before all names, that prefix, notes about what else was there)."""
    prefix, notes = "", ()
    for _ in range(6):
        if known_names(tensors):
            break
        groups: dict[str, dict] = {}
        for key, value in tensors.items():
            head, dot, rest = key.partition(".")
            groups.setdefault(head if dot else "", {})[rest if dot else key] = value
        networks = [head for head, group in groups.items() if head and _is_network(group)]
        if not networks:
            break
        if len(networks) > 1:
            raise UserError(f"holds several networks ({', '.join(networks)}); save the state dict of one")
        (head,) = networks
        others = [f"{h}.{next(iter(g))}" if h else next(iter(g)) for h, g in groups.items() if h != head]
        strangers = [h or next(iter(g)) for h, g in groups.items() if h != head and not _SIDE.match(h)]
        if strangers:
            raise UserError(
                f"holds a network under {head!r} and other tensors beside it ({', '.join(others[:3])}); "
                "save the state dict of the network alone"
            )
        if others:
            notes += (f"passed over {', '.join(h for h in groups if h != head)} beside {head}",)
        prefix, tensors = f"{prefix}{head}.", groups[head]
    return dict(tensors), prefix, notes


def _is_network(names: Collection[str]) -> bool:
    """Whether they are a network's, but for what all of them begin with."""
    while not known_names(names):
        heads = {name.partition(".")[0] for name in names if "." in name}
        if len(heads) != 1 or not all("." in name for name in names):
            return False
        names = [name.partition(".")[2] for name in names]
    return True


def _versions(written: object, prefix: str) -> dict[str, int]:
    if not isinstance(written, Mapping):
        return {}
    return {
        _WRAPPERS.sub("", name).removeprefix(prefix): of["version"]
        for name, of in written.items()
        if isinstance(name, str) and isinstance(of, Mapping) and isinstance(of.get("version"), int)
    }


def _tensor(key: str, value: object) -> Tensor:
    if isinstance(value, Tensor):
        return value
    try:
        return value.tensor()
    except UserError:
        raise
    except ValueError as error:
        raise damaged(f"{key}: {error}") from None


def _open_safetensors(path: Path) -> Content:
    tensors, text = _safetensors(path)
    if text.get("format") not in (FORMAT, FORMAT_OPTIONS, FORMAT_RANGES):
        if text.get("format") == RANGES:
            raise UserError("holds ranges of a network, no weights; give it to load() as calibrate=")
        if text.get("format", "").startswith("stdc_fast"):
            known = f"{FORMAT!r}, {FORMAT_OPTIONS!r} and {FORMAT_RANGES!r}"
            raise UserError(f"has format {text['format']!r}, this version reads {known}")
        return dataclasses.replace(unwrap(tensors), container="safetensors")
    metadata = _metadata(text)
    if text["format"] != FORMAT_RANGES:
        return Content(tensors, metadata, "safetensors")
    calibration, facts = None, metadata.pop(record.KEY, None)
    try:
        calibration = record.Calibration.of(tensors, facts)
    except UserError as error:  # the weights may be calibrated again
        announce(str(path), "its ranges for int8 are left out: %s", error)
    tensors = {k: v for k, v in tensors.items() if not k.startswith(record.PREFIX)}
    return Content(tensors, metadata, "safetensors", calibration=calibration)


def open_ranges(path: Path) -> record.Calibration:
    """The ranges of a file, which may have the weights too. UserError, without its name, if it has none."""
    try:
        tensors, text = _safetensors(path)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError("no such file") from None
    except OSError as error:
        raise UserError(f"can not be read ({error.strerror or error})") from None
    if text.get("format") not in (FORMAT_RANGES, RANGES):
        raise UserError("has no ranges; stdc-fast calibrate makes them")
    return record.Calibration.of(tensors, _metadata(text).get(record.KEY))


def _safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(Tensors, metadata as texts) of a file."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, file.metadata() or {}  # noqa: SIM118, no dict
    except (FileNotFoundError, IsADirectoryError):
        raise
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"damaged safetensors file ({error}); copy it again") from None


def _metadata(text: dict[str, str]) -> dict[str, object]:
    try:
        return {k: json.loads(v) for k, v in text.items() if k != "format"}
    except (ValueError, RecursionError) as error:  # also of numbers with thousands of digits
        raise UserError(f"damaged metadata ({str(error)[:100]}); copy it again") from None
