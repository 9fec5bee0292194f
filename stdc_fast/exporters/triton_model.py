"""For the Python backend of Triton Inference Server: labels pictures; ``stdc-fast export`` copied it.

IMAGE is uint8 ``[N, H, W, 3]``, RGB; or ENCODED is ``[N, 1]``, image files' bytes. LABELS is uint8
``[N, H, W]``, class ids at the pictures' own size. The server's environment needs the package stdc_fast.
"""

import json
from pathlib import Path

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

import stdc_fast
from stdc_fast import images


class TritonPythonModel:
    def initialize(self, args):
        _check_arrays()
        said = json.loads(args["model_config"]).get("parameters", {})
        said = {name: value["string_value"] for name, value in said.items()}
        gpu = args["model_instance_kind"] == "GPU"
        self._model = stdc_fast.load(
            Path(__file__).with_name("model.safetensors"),
            device=f"cuda:{args['model_instance_device_id']}" if gpu else "cpu",
            dtype=said.get("dtype", "auto"),
        )
        size = said.get("size", "")
        self._size = tuple(map(int, size.split("x"))) if "x" in size else size or None

    def execute(self, requests):
        """One response a request; pictures of one size are labelled together, whoever sent them."""
        responses, alike, labels = [None] * len(requests), {}, {}
        for i, request in enumerate(requests):
            if request.is_cancelled():
                responses[i] = _failed("cancelled", pb_utils.TritonError.CANCELLED)
                continue
            try:
                frames = _frames(request)
            except ValueError as error:
                responses[i] = _failed(str(error), pb_utils.TritonError.INVALID_ARG)
            else:
                alike.setdefault(frames.shape[1:], []).append((i, frames))
        for group in alike.values():
            try:
                found = self._label(np.concatenate([frames for _, frames in group]))
            except Exception:  # the fault of one is not that of the others
                found = None
            start = 0
            for i, frames in group:
                try:
                    labels[i] = self._label(frames) if found is None else found[start : start + len(frames)]
                except ValueError as error:
                    responses[i] = _failed(str(error), pb_utils.TritonError.INVALID_ARG)
                except Exception as error:
                    responses[i] = _failed(f"{type(error).__name__}: {error}", pb_utils.TritonError.INTERNAL)
                start += len(frames)
        for i, found in labels.items():
            responses[i] = pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("LABELS", found)])
        return responses

    def _label(self, frames):
        with images.memory_errors("the batch"):
            return self._model.label(frames, size=self._size).cpu().numpy()


def _check_arrays():
    """Servers before 24.11 see other values than those of NumPy 2, and send none; that is said at once."""
    known = torch.arange(8, dtype=torch.uint8)
    if not np.array_equal(pb_utils.Tensor.from_dlpack("known", known).as_numpy(), known.numpy()):
        raise RuntimeError(
            f"this server misreads NumPy {np.__version__}; install numpy<2 in its environment, or take a "
            "server from 24.11 on"
        )


def _frames(request):
    """RGB uint8 ``[N, H, W, 3]`` of a request. ValueError for none, both, or pictures of several sizes."""
    raw = pb_utils.get_input_tensor_by_name(request, "IMAGE")
    encoded = pb_utils.get_input_tensor_by_name(request, "ENCODED")
    if (raw is None) == (encoded is None):
        raise ValueError("give IMAGE or ENCODED, and not both")
    if raw is not None:
        return raw.as_numpy()
    files = [bytes(content) for content in encoded.as_numpy().ravel()]
    pictures = [images.read_image(file, formats=images.FROM_STRANGERS) for file in files]
    if len({picture.shape for picture in pictures}) > 1:
        raise ValueError("the pictures of one request have several sizes; send each in a request of its own")
    return np.stack(pictures)


def _failed(message, code):
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message.split("\n")[0], code))
