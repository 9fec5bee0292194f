"""Weights by name, embedded and published, and :func:`load`."""

from __future__ import annotations

import difflib
import fnmatch
import functools
import logging
import operator
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from reprlib import repr as short

import torch

from stdc_fast import _native, backends, checkpoints, download, hub, levels, registry
from stdc_fast.backends.eager.ranges import fp16_overflow
from stdc_fast.calibration import record as ranges
from stdc_fast.calibration.record import Calibration
from stdc_fast.classes import DATA_SETS, ClassSet
from stdc_fast.errors import UserError
from stdc_fast.placement import on_cpu
from stdc_fast.precision import BFLOAT16, FLOAT16, FLOAT64, Like, choose
from stdc_fast.segmenter import InputSize, Segmenter

log = logging.getLogger(__name__)

WEIGHTS = Path(__file__).parent / "weights"
DEFAULT = "stdc1_camvid"
#: Files of weights in the folder of a training run, the preferred first.
RUN = ("best.safetensors", "averaged.safetensors", "last.pt")
#: What a name's status may be; :func:`model_info` gives it.
STATUSES = ("embedded", "cached", "download", "uncertain", "manual")


def list_models(pattern: str = "*", *, backbones: bool = False, status: str | None = None) -> list[str]:
    """Names that :func:`load` knows: the embedded weights, then the published ones.

    Args:
        pattern: as of a shell, such as "*city*"; upper and lower case are the same.
        backbones: with ImageNet backbones, which are files to start a training from.
        status: only names of this status: "embedded"; "cached", its file is on this machine; "download";
            "uncertain", only addresses that may be gone are known; "manual", fetched by hand only.

    Raises UserError for another status. docs/models.md has what is published of each name.
    """
    if status is not None and status not in STATUSES:
        raise UserError(f"status must be one of {', '.join(STATUSES)}, not {status!r}")
    published = (r.name for r in registry.RECORDS.values() if backbones or r.task != registry.BACKBONE)
    return [
        name
        for name in (*_embedded(), *sorted(published))
        if fnmatch.fnmatchcase(name, pattern.lower()) and status in (None, _status(name))
    ]


def model_info(name: str = DEFAULT) -> dict[str, object]:
    """All that is known of a name of :func:`list_models`, as JSON values.

    For embedded weights, and for a file, that is what they say of themselves: recipe, mIoU, classes, terms
    and more. For published ones it is their :class:`stdc_fast.registry.Record`. To both come "name", "status"
    and "path", where the file is or would be; None without a home directory. UserError, with the nearest
    names, for an unknown one.
    """
    if (record := registry.RECORDS.get(str(name))) is not None:
        facts, path = record.facts(), download.known_place(record)
    else:
        path = find(name)
        facts = checkpoints.read(path).metadata
    place = None if path is None else str(path)
    return {**facts, "name": title(name), "status": _status(str(name)), "path": place}


def _embedded() -> list[str]:
    return sorted(p.stem for p in WEIGHTS.glob("*.safetensors") if not p.name.endswith(ranges.SUFFIX))


def _status(name: str) -> str:
    """One of STATUSES; "cached" for files."""
    if name in registry.RECORDS:
        return download.status(registry.RECORDS[name])
    return "embedded" if name in _embedded() else "cached"


def title(pretrained: str | Path) -> str:
    """A name as it is, and of a file its name without suffix."""
    return str(pretrained) if str(pretrained) in registry.RECORDS else Path(pretrained).stem


@on_cpu
@torch.inference_mode(False)  # tensors made in that mode do not count their changes
def load(
    pretrained: str | Path = DEFAULT,
    *,
    device: str | torch.device = "auto",
    dtype: Like = "auto",
    backend: str = "auto",
    memory: str = "fast",
    download: bool = False,
    classes: str | Sequence[str] | None = None,
    palette: Sequence[Sequence[int]] | None = None,
    calibrate: object = None,
    **options: object,
) -> Segmenter:
    """Load STDC-Seg weights for inference.

    Args:
        pretrained: a name (:func:`list_models`), the folder of a training run or of ``save_pretrained``, or a
            checkpoint file of any family that :func:`stdc_fast.checkpoints.read` knows, told apart by
            content. Of the Hugging Face Hub it is ``hf://OWNER/NAME``, then ``@REVISION`` and ``/FILE``.
        device: "auto" (the GPU if there is one), "cpu", "cuda", "cuda:1", ...
        dtype: "auto" (float16 on a GPU with tensor cores, bfloat16 on a CPU with instructions for it, else
            float32), or "float32", "float64", "float16", "bfloat16", or a torch dtype. A network whose values
            float16 can not hold runs in bfloat16 instead, and a warning says so. "int8" is for CPUs and
            GPUs: ops that are faster in 8 bits are, all else is in the dtype of "auto", on a GPU in
            bfloat16. It needs ranges of the network's maps, which the embedded weights have.
        backend: "auto" or a name that ``stdc-fast info`` lists as available; the environment
            variable STDC_FAST_BACKEND stands in for "auto".
        memory: "fast", or "small" for less than half the weights, which takes longer; both are the same
            outside of the CPU engine.
        download: fetch published weights that are not on this machine; without it nothing is downloaded.
        classes: names of the classes by class id, or "camvid", "cityscapes" or "voc"; they go before those
            of the file. Where neither has them they are "class 0", "class 1", ..., and a warning says so.
        palette: an RGB colour (0..255) for each class; goes before the file's.
        calibrate: what int8 takes ranges from: frames like those to be labelled, as for
            :func:`stdc_fast.calibrate` (a folder, paths, arrays); a file that ``stdc-fast calibrate``
            wrote; or another model's :attr:`~Segmenter.calibration`. None takes those of the file, or of the
            file NAME.ranges.safetensors beside it.
        options: what a file can not say of its network: ``batch_norm`` ("plain", "in-place"), ``conv_last``,
            ``threshold``, ``align_corners``, ``eps``, ``mean``, ``std``, ``count_include_pad``. A file that
            leaves one of them open is refused with its name; ``docs/checkpoints.md`` explains them.

    Returns a :class:`Segmenter` in eval mode, parameters frozen (``model.requires_grad_()`` to train them);
    ``report`` says what was mapped and dropped, ``reason`` why it runs in this dtype on this backend.
    Raises UserError for unknown names (with the nearest ones), weights that are not on this machine (with
    how to get them), files that do not match exactly, int8 without ranges of these weights, and devices,
    dtypes or backends that are not available here.
    """
    place = backends.resolve_device(device)
    precision, why = choose(dtype, place)
    if backend != "auto":
        backends.named(backend)  # a misspelt name is said before anything is read
    if precision.levels and place.type != "cpu":
        decision = backends.select(None, precision, place, backend)
        if decision.name == "eager" and not decision.asked:
            needed = f"dtype int8 needs the CUDA kernels or Triton on a GPU ({decision.reason})"
            raise UserError(f"{needed}; use auto, or device cpu")
    path = find(pretrained, download)
    checkpoint = checkpoints.read(path, **options)
    log.info("%s: %s", pretrained, checkpoint.report)
    record = registry.RECORDS.get(str(pretrained))
    meta = (record.defaults() if record else {}) | checkpoint.metadata
    known = named_classes(pretrained, checkpoint, meta, classes, palette)
    size = InputSize(meta.get("short_side"), meta.get("scale") or 1.0)
    try:
        network = checkpoint.network(torch.float64 if precision == FLOAT64 else torch.float32)
    except UserError as error:
        raise UserError(f"{pretrained}: {error}") from None
    network.requires_grad_(False)
    name = title(pretrained)
    model = Segmenter(network.to(place), known, size, backend, name, precision, why, memory)
    if precision == FLOAT16 and (problem := fp16_overflow(model.kept_plan(), place)) is not None:
        model.precision, model.why_precision = BFLOAT16, f"float16 would overflow: {problem}"
        log.warning("%s: runs in bfloat16: %s", pretrained, model.why_precision)
    model.report = checkpoint.report
    model.remember((record.provenance() if record else {}) | checkpoint.metadata)
    model.decide()
    _give_ranges(model, checkpoint.calibration, path, calibrate, str(pretrained))
    if backend == "auto" and model.backend == "eager" and place.type == "cpu":
        _say_what_is_missing()
    log.info("%s: %s", pretrained, model.reason)
    return model


def own_ranges(own: Calibration | None, path: Path, needed: bool) -> Calibration | None:
    """The ranges that a file of weights has, else those of the file beside it, or None.

    UserError for ranges that are needed and can not be read; a warning if they are not needed.
    """
    file = ranges.beside(path)
    if own is not None or not file.is_file():
        return own
    try:
        return checkpoints.read_ranges(file)
    except UserError as error:
        if needed:
            raise
        log.warning("%s: its ranges for int8 are left out: %s", path, error)
        return None


def _give_ranges(
    model: Segmenter, own: Calibration | None, path: Path, given: object, pretrained: str
) -> None:
    """The ranges that a model is to have; UserError if it needs some and there are none of its weights."""
    file = Path(given) if isinstance(given, (str, os.PathLike)) else None
    if isinstance(given, Calibration):
        model.calibration = given
    elif file is not None and file.suffix == ".safetensors":
        model.calibration = checkpoints.read_ranges(file)
    elif given is not None:
        model.calibrate(given)
    else:
        model.calibration = own_ranges(own, path, model.precision.levels)
    if given is None and not model.precision.levels:
        return
    # Said now, and not when the first image comes.
    try:
        levels.ranges_of(pretrained, model.network, model.calibration)
        levels.say_if_none(pretrained, model.precision, model.ops_in_levels())
    except UserError as error:
        if given is not None or own is not None or model.calibration is None:
            raise
        raise UserError(f"{ranges.beside(path)}: {error}") from None


@functools.cache
def _say_what_is_missing() -> None:
    """Once, that CPUs run without the native module, where that is not there."""
    if (why := _native.why_not()) is not None:
        log.warning("CPUs are slower without the native module: %s", why)


def named_classes(
    pretrained: str | Path,
    checkpoint: checkpoints.Checkpoint,
    meta: Mapping[str, object],
    classes: str | Sequence[str] | None = None,
    palette: Sequence[Sequence[int]] | None = None,
) -> ClassSet:
    """Names and colours of a checkpoint's classes: the caller's, else those in ``meta``, else numbers.

    UserError for names or colours that do not fit.
    """
    count = checkpoint.num_classes
    if isinstance(classes, str):
        given = DATA_SETS.get(classes.lower())
        if given is None:
            raise UserError(f"classes must be names, or one of {', '.join(DATA_SETS)}, not {classes!r}")
        classes, colours = given.names, given.palette
    elif classes is not None:
        if not isinstance(classes, Sequence):
            raise UserError(f"classes must be a list of names, not {classes!r}")
        classes, colours = tuple(classes), None
    elif meta.get("classes") is not None:
        classes, colours = tuple(meta["classes"]), meta.get("palette")
    else:
        log.warning(
            "%s: has no names of its %d classes, so they are called class 0 to class %d; "
            "give them as classes=[...], or classes='cityscapes' if it is of that data set",
            pretrained, count, count - 1,
        )  # fmt: skip
        classes, colours = tuple(f"class {i}" for i in range(count)), None
    colours = palette if palette is not None else colours
    try:
        plain = None if colours is None else [[operator.index(v) for v in colour] for colour in colours]
    except TypeError:
        raise UserError(
            f"palette must be one [R, G, B] of 0..255 for each class, not {short(colours)}"
        ) from None
    try:
        checkpoints.check_names({"classes": list(classes), "palette": plain}, count)
    except UserError as error:
        raise UserError(f"{pretrained}: {error}") from None
    return ClassSet(classes, tuple(map(tuple, plain))) if plain else ClassSet.from_names(classes)


def find(pretrained: str | Path, fetch: bool = False, backbone: bool = False) -> Path:
    """The weights file of a name or of a training run's folder, or the file itself.

    ``fetch`` downloads what is not on this machine; ``backbone`` takes names of backbones, too. UserError for
    an unknown name, with the nearest ones, for a backbone that was not wanted, and for a file that is not
    here, with how to get it.
    """
    if not isinstance(pretrained, (str, os.PathLike)):
        raise UserError(f"expected a name or a file of weights, not {pretrained!r}")
    path, text = Path(pretrained), str(pretrained)
    embedded = WEIGHTS / f"{pretrained}.safetensors"
    if path.name == text and os.path.isfile(embedded):
        return embedded
    if (record := registry.RECORDS.get(text)) is not None:
        if record.task == registry.BACKBONE and not backbone:
            raise UserError(
                f"{text} is a backbone, not a segmentation network; it is for stdc-fast train --backbone "
                f'{text}, and "stdc-fast download {text}" fetches the file'
            )
        return download.fetch(record) if fetch else download.find(record)
    if hub.is_address(text):
        return hub.find(hub.parse(text), fetch)
    if os.path.isdir(path):
        return _of_folder(path)
    if os.path.exists(path):
        return path
    if "/" in text or "\\" in text or path.suffix in (".pth", ".pt", ".tar", ".safetensors", ".pdparams"):
        raise UserError(f"{text}: no such file; embedded weights are {', '.join(_embedded()) or 'none'}")
    raise UserError(f"unknown model {text!r}, and no such file; {nearest(text)}")


def _of_folder(folder: Path) -> Path:
    """The weights in a folder: of a training run the best, else the averaged ones of its last save.

    Otherwise ``model.safetensors``, as the Hub has it, or the only file that may be weights.
    """
    for name in RUN:
        if (folder / name).is_file():
            return folder / name
    return folder / hub.choose([p.name for p in folder.iterdir() if p.is_file()], str(folder))


def nearest(name: str) -> str:
    """What an unknown name may have meant, in words."""
    known = list_models(backbones=True)
    close = difflib.get_close_matches(name.lower(), known, 3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else 'see "stdc-fast models"'
