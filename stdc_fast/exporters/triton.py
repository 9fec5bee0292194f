"""Model folders for the repository of Triton Inference Server: its Python backend, or ONNX Runtime's."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from stdc_fast import zoo
from stdc_fast.errors import UserError
from stdc_fast.files import write_errors
from stdc_fast.input_size import check_request
from stdc_fast.precision import PRECISIONS

if TYPE_CHECKING:
    from stdc_fast.exporters import Report, Settings
    from stdc_fast.segmenter import Segmenter

#: Kinds of model folders, and what runs them.
KINDS = {"triton": "the Python backend, with this library", "triton-onnx": "the ONNX Runtime backend"}
#: That a request waits for others of its shape.
DELAY_MICROSECONDS = 1000
_TYPES = {"normalised": "TYPE_FP32", "nhwc": "TYPE_UINT8", "nchw": "TYPE_UINT8"}


def repository(
    model: Segmenter | str | Path,
    folder: str | Path,
    *,
    kind: str = "triton",
    name: str | None = None,
    max_batch: int = 8,
    dtype: str | None = None,
    size: str | tuple[int, int] | None = None,
    check: bool = True,
    **options: object,
) -> Report:
    """Write a model's folder into a model repository, whole or not at all.

    Args:
        model: a loaded model, or a name or file of weights as :func:`stdc_fast.load` takes it.
        folder: the repository; its ``NAME/config.pbtxt`` and ``NAME/1/`` are made.
        kind: "triton" for the Python backend: it labels encoded pictures and frames by this library, which
            the server's environment has to have. "triton-onnx" is an ONNX file for the ONNX Runtime backend.
        name: of the model in the repository; None for the weights' name, with "_onnx" for ONNX.
        max_batch: pictures that the server may batch, 1 to 256.
        dtype: of "triton" what the server computes in, as for :func:`stdc_fast.load`, "auto" by default; of
            "triton-onnx" "float32" or "float16".
        size: (H, W) that the network sees, or for "triton" "native"; None for the weights' own, in ONNX for
            every size, as it is.
        check: compare the file with the reference network.
        options: of ONNX further settings of :func:`stdc_fast.export`: ``input`` ("nhwc"), ``output``
            ("labels"), ``frame``, ``opset``. Of both what a file leaves open of its network.

    Returns the report of the model's file. UserError where the folder is there already, and as
    :func:`stdc_fast.export`.
    """
    from stdc_fast.exporters import Settings, export
    from stdc_fast.exporters.source import Source

    if kind not in KINDS:
        raise UserError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    if type(max_batch) is not int or not 1 <= max_batch <= 256:
        raise UserError(f"max_batch must be a whole number from 1 to 256, not {max_batch!r}")
    graph = {key: options.pop(key) for key in ("input", "output", "frame", "opset") if key in options}
    if kind == "triton":
        dtype = dtype or "auto"
        if dtype not in ("auto", *PRECISIONS):
            raise UserError(f"dtype must be auto or one of {', '.join(PRECISIONS)}, not {dtype!r}")
        if graph:
            raise UserError(f"{', '.join(graph)} is for kind triton-onnx; leave it out")
        check_request(None, size)
    title = zoo.title(model) if isinstance(model, (str, Path)) else model.name
    name = name or _name(title) + ("" if kind == "triton" else "_onnx")
    if name != _name(name):
        raise UserError(f"a model's name has letters, digits, _, - and ., unlike {name!r}; choose another")
    target = Path(folder) / name
    if target.exists():
        raise UserError(f"{target}: is there already; remove it, or choose another name")
    with write_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the repository and not in it, as a server may be watching that; but on its file system.
        beside = target.parent.resolve()
        beside = beside if beside.is_mount() else beside.parent
        with tempfile.TemporaryDirectory(dir=beside, prefix=f".{name}.tmp") as place:
            made = Path(place) / name
            (made / "1").mkdir(parents=True)
            if kind == "triton":
                file = made / "1" / "model.safetensors"
                done = export(model, file, batch=None, check=check, **options)
                shutil.copyfile(Path(__file__).with_name("triton_model.py"), made / "1" / "model.py")
                text = _python_config(name, max_batch, dtype, size)
            else:
                settings = Settings(
                    dtype=dtype or "float32", size=size, batch=None,
                    **{"input": "nhwc", "output": "labels"} | graph,
                )  # fmt: skip
                how = dataclasses.asdict(settings)
                done = export(model, made / "1" / "model.onnx", check=check, **how, **options)
                classes = 0 if settings.output == "labels" else len(Source.of(model, **options).classes)
                text = _onnx_config(name, max_batch, done.settings, classes)
            (made / "config.pbtxt").write_text(text)
            os.replace(made, target)
    return dataclasses.replace(done, path=target / "1" / done.path.name)


def _name(text: str) -> str:
    """As a folder and in addresses."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", text).lstrip(".") or "model"


def _tensor(name: str, kind: str, dims: tuple[int, ...], more: str = "") -> str:
    return f'  {{ name: "{name}" data_type: {kind} dims: [ {", ".join(map(str, dims))} ]{more} }}'


def _config(head: list[str], inputs: list[str], outputs: list[str], max_batch: int, tail: list[str]) -> str:
    lines = [
        *head, f"max_batch_size: {max_batch}", "input [", ",\n".join(inputs), "]", "output [",
        ",\n".join(outputs), "]",
        f"dynamic_batching {{ max_queue_delay_microseconds: {DELAY_MICROSECONDS} }}", *tail,
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _python_config(name: str, max_batch: int, dtype: str, size: str | tuple[int, int] | None) -> str:
    shown = size if isinstance(size, str) else "" if size is None else "x".join(map(str, size))
    parameters = [
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
        for key, value in (("dtype", dtype), ("size", shown))
        if value
    ]
    return _config(
        [f'name: "{name}"', 'backend: "python"'],
        [
            _tensor("IMAGE", "TYPE_UINT8", (-1, -1, 3), " optional: true"),
            _tensor("ENCODED", "TYPE_STRING", (1,), " optional: true"),
        ],
        [_tensor("LABELS", "TYPE_UINT8", (-1, -1))],
        max_batch,
        ["instance_group [ { count: 1 } ]", *parameters],
    )


def _onnx_config(name: str, max_batch: int, settings: Settings, classes: int) -> str:
    height, width = settings.image or (-1, -1)
    given = (height, width, 3) if settings.input == "nhwc" else (3, height, width)
    if settings.output == "labels":
        output = _tensor("labels", "TYPE_UINT8", (height, width))
    else:
        if settings.output == "logits8":
            height, width = (-1 if side < 0 else -(-side // 8) for side in (height, width))
        output = _tensor("logits", "TYPE_FP32", (classes, height, width))
    return _config(
        [f'name: "{name}"', 'platform: "onnxruntime_onnx"'],
        [_tensor("image", _TYPES[settings.input], given)],
        [output],
        max_batch,
        [],
    )
