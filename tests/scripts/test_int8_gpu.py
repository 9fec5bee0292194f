"""What 8 bits would be worth on GPUs: the record is what the model says now, and the document has it."""

import json
from dataclasses import replace

import hosted
import pytest
from paths import ROOT

from bench import int8_gpu
from stdc_fast.backends.cuda.tiles import CLOCK, CONVERTED, CompiledForms, CudaTiles, predict
from stdc_fast.backends.gpu.model import DEVICES, Work
from stdc_fast.plan.ops import Conv, Quantise

RECORD = ROOT / "docs/results/int8_gpu_prediction.json"


def test_the_record_is_what_the_model_says():
    rows = json.loads(RECORD.read_text())["rows"]
    assert [(r["class"], (r["network"], tuple(r["size"]), r["batch"])) for r in rows] == [
        (key, network) for key in int8_gpu.CLASSES for network in int8_gpu.NETWORKS
    ]
    assert RECORD.read_text() == int8_gpu.text(rows)
    for key in ("sm_87", "sm_90"):  # the others take as long
        row = int8_gpu.row(hosted.module(), key, *int8_gpu.NETWORKS[0])
        assert row in rows


def test_the_ladder_has_the_same_float16():
    ladder = json.loads((ROOT / "docs/results/cuda_ladder.json").read_text())["now"]
    found = {}
    for r in json.loads(RECORD.read_text())["rows"]:
        height, width = r["size"]
        name = f"{r['network']} {height}x{width}, batch {r['batch']}, {r['class']}"
        found[name] = r["microseconds"]["float16"]
    both = set(found) & set(ladder)
    assert len(both) == 12 and {key: found[key] for key in both} == {key: ladder[key] for key in both}


def test_the_document_has_its_table():
    rows = json.loads(RECORD.read_text())["rows"]
    assert int8_gpu.table_of(rows) in (ROOT / "docs/performance-notes.md").read_text()


def test_plans():
    found = int8_gpu.plans("stdc1")
    counts = {
        name: sum(bool(getattr(op, "multipliers", None)) for op in plan.ops) for name, plan in found.items()
    }
    assert counts == {"float16": 0, "int8": 31, "first in float16": 30}
    assert sum(isinstance(op, Quantise) for op in found["int8"].ops) == 3
    left = [op for op in found["int8"].ops if isinstance(op, Conv) and not op.multipliers]
    assert [found["int8"].buffers[op.output.buffer].store for op in left] == ["float32"]  # the classifier


def test_the_model_of_a_convolution():
    """Twice the channels in 8 bits take what float16 does, and conversions."""
    device, forms = DEVICES["sm_80"], CompiledForms(hosted.module())
    half = Work("conv", 3, 1, (128,), 64, 1, 64, 128, "float16")
    eight = replace(half, dtype="int8", inputs=(256,))
    t = CudaTiles((64, 64, 4), 8, 8, 64)
    before, after, levels = (
        predict(work, t, device, forms.form(work, t)) for work in (half, eight, replace(eight, levels=True))
    )
    assert replace(after, seconds=0) == replace(before, seconds=0)
    rounds = -(-before.programs // device.processors)
    conversion = rounds * 64 * 64 / (CONVERTED * CLOCK)
    assert after.seconds - before.seconds == pytest.approx(conversion)
    saved = 64 * 128 * 64 / device.cache
    assert levels.seconds - after.seconds == pytest.approx(conversion - saved)


def test_products_of_geforce_are_twice_as_fast():
    """Where they bound a kernel: float32 sums of 16 bits have half the rate there."""
    device, forms = DEVICES["sm_86"], CompiledForms(hosted.module())
    half = Work("conv", 3, 1, (256,), 256, 16, 64, 128, "float16")
    eight = replace(half, dtype="int8", inputs=(512,))
    t = CudaTiles((128, 128), 8, 16, 64)
    before, after = (predict(work, t, device, forms.form(work, t)).products for work in (half, eight))
    assert 0.4 < after / before < 0.8
