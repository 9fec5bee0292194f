"""A stand-in of ``triton_python_backend_utils``, after its documentation: what a model of the server may use.

Stricter than that where it matters: names and arguments that it does not have are errors.
"""

import types

import numpy as np


class Tensor:
    def __init__(self, name, array):
        if not isinstance(array, np.ndarray):
            raise TypeError("a tensor is made of a NumPy array")
        self._name, self._array = name, array

    @classmethod
    def from_dlpack(cls, name, given):
        return cls(name, np.from_dlpack(given))

    def name(self):
        return self._name

    def as_numpy(self):
        return self._array


class TritonError:
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message, code=INTERNAL):
        if not isinstance(message, str) or not isinstance(code, int):
            raise TypeError("a message and a code")
        self._message, self._code = message, code

    def message(self):
        return self._message

    def code(self):
        return self._code


class InferenceRequest:
    def __init__(self, inputs, cancelled=False):
        self._inputs, self._cancelled = inputs, cancelled

    def inputs(self):
        return self._inputs

    def is_cancelled(self):
        return self._cancelled


class InferenceResponse:
    def __init__(self, output_tensors=(), error=None):
        if not all(isinstance(one, Tensor) for one in output_tensors):
            raise TypeError("output_tensors is a list of tensors")
        self._outputs, self._error = list(output_tensors), error

    def output_tensors(self):
        return self._outputs

    def has_error(self):
        return self._error is not None

    def error(self):
        return self._error


def get_input_tensor_by_name(request, name):
    return next((one for one in request.inputs() if one.name() == name), None)


def module():
    made = types.ModuleType("triton_python_backend_utils")
    for one in (Tensor, TritonError, InferenceRequest, InferenceResponse, get_input_tensor_by_name):
        setattr(made, one.__name__, one)
    return made
