"""The formats of exported networks: suffixes, what each can hold, and the packages that it needs."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
from pathlib import Path

from stdc_fast.errors import UserError


@dataclasses.dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        name: as of ``format=`` and ``--format``.
        suffix: of the file, which tells the format.
        about: what reads it.
        dtypes: that it can be written in.
        needs: modules that write the file and run it for the check.
        extra: what pip installs them by.
        any_size: whether one file can serve every size.
        least: smallest side of such a file.
        graph: whether it holds a graph, which may have normalisation and argmax, and not only weights.
        frames: whether that graph may read raw frames.
        beside: suffixes of further files that are written beside it.
        packages: distributions whose versions the report names; those of ``needs`` where they differ.
    """

    name: str
    suffix: str
    about: str
    dtypes: tuple[str, ...] = ("float32",)
    needs: tuple[str, ...] = ()
    extra: str = ""
    any_size: bool = False
    least: int = 32
    graph: bool = True
    frames: bool = True
    beside: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        """Modules that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]

    def check_installed(self) -> None:
        """UserError, with the line that installs them, unless all packages are there."""
        if missing := self.missing:
            raise UserError(
                f"format {self.name} needs {', '.join(missing)}, which is not installed; "
                f'run: pip install "stdc-fast[{self.extra}]"'
            )

    def versions(self) -> dict[str, str]:
        """Of the packages that write and check it."""
        return {name: importlib.metadata.version(name) for name in self.packages or ("torch",)}


_HALF = ("float32", "float16")

FORMATS: dict[str, Format] = {
    known.name: known
    for known in (
        Format(
            "onnx", ".onnx", "ONNX Runtime, TensorRT and others", (*_HALF, "int8"), ("onnx", "onnxruntime"),
            "export", any_size=True, packages=("onnx", "onnxruntime"),
        ),
        Format(
            "openvino", ".xml", "OpenVINO", _HALF, ("onnx", "openvino"), "openvino",
            any_size=True, beside=(".bin",), packages=("onnx", "openvino"),
        ),
        Format("torch", ".pt2", "torch.export.load", any_size=True, least=33),
        Format(
            "plan", ".plan", "this library's C++ API", ("float32", "bfloat16", "int8"), any_size=True,
            graph=False,
        ),
        Format("safetensors", ".safetensors", "stdc_fast.load", _HALF, any_size=True, graph=False),
        Format(
            "ncnn", ".param", "ncnn", _HALF, ("onnx", "ncnn", "pnnx"), "ncnn",
            frames=False, beside=(".bin",), packages=("ncnn", "pnnx"),
        ),
        Format("mnn", ".mnn", "MNN", _HALF, ("onnx", "MNN"), "mnn", packages=("MNN",)),
        Format(
            "litert", ".tflite", "LiteRT", needs=("litert_torch", "ai_edge_litert"), extra="litert",
            packages=("litert-torch", "ai-edge-litert"),
        ),
        Format(
            "executorch", ".pte", "ExecuTorch with XNNPACK", needs=("executorch",), extra="executorch",
            packages=("executorch",),
        ),
    )
}  # fmt: skip


def format_of(path: Path, name: str | None) -> Format:
    """The format of a file: by its suffix, which ``name`` must not contradict.

    UserError for an unknown suffix or name, and where the two differ.
    """
    known = ", ".join(f"{f.suffix} ({f.name})" for f in FORMATS.values())
    if name is not None and not (isinstance(name, str) and name in FORMATS):
        raise UserError(f"format must be one of {', '.join(FORMATS)}, not {name!r}")
    found = next((f for f in FORMATS.values() if f.suffix == path.suffix.lower()), None)
    if found is None:
        raise UserError(f"{path}: the suffix {path.suffix or '(none)'} is of no format; use one of {known}")
    if name is not None and found.name != name:
        raise UserError(
            f"{path}: {path.suffix} is the suffix of format {found.name}, not of {name}; "
            f"name it {FORMATS[name].suffix}, or leave the format out"
        )
    return found
