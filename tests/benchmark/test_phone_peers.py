"""ncnn and MNN: what the tests of all peers leave out."""

import dataclasses
import sys

import pytest
import torch

from stdc_fast import zoo
from stdc_fast.benchmark import parity, runners, workloads
from stdc_fast.benchmark.workloads import Workload

ODD = Workload("stdc1_camvid", zoo.find("stdc1_camvid"), 97, 131, batch=2)
SPECS = {s.key: s for s in runners.peers("cpu", ["float32", "bfloat16", "float16"])}
OF_PHONES = [key for key in SPECS if key[0] in ("ncnn", "MNN")]


def made(key, workload):
    absent = SPECS[key].missing("cpu")
    if absent is not None:
        pytest.skip(absent)
    return SPECS[key].make(workload, "cpu", 2)


def test_what_they_run_in():
    assert OF_PHONES == [("ncnn", "float32"), ("ncnn", "bfloat16"), ("MNN", "float32")]
    assert not {s.name for s in runners.peers("cuda", ["float32", "float16"])} & {"ncnn", "MNN"}


@pytest.mark.parametrize("key", OF_PHONES, ids=" ".join)
@pytest.mark.parametrize("scope", ["logits", "labels"])
def test_odd_sizes_and_batches(key, scope, capfd):
    runner = made(key, ODD)
    call = runner.prepare(scope)
    first, second = runner.host(call()), runner.host(call())
    assert torch.equal(first, second)  # the input is left as it was, and nothing lies in freed memory
    found, broken = parity.check({scope: first.numpy()}, key[1], workloads.expected(ODD, [scope]))
    assert not broken
    if (key[1], scope) == ("bfloat16", "logits"):
        assert found["logits"] > 1e-3  # it did not quietly run in float32
    assert capfd.readouterr().out == ""


def test_the_converter_of_mnn_does_not_bring_its_tools():
    runner = made(("MNN", "float32"), dataclasses.replace(ODD, batch=1))
    runner.prepare("logits")
    assert not [name for name in sys.modules if name.startswith("MNN.tools")]
