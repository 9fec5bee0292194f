"""What a plan costs, and its three forms: dict, table, figure; ``stdc-fast info --plan``."""

import functools
import itertools
import json
import sys
import xml.etree.ElementTree

import matplotlib.style
import pytest
import torch
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from paths import ROOT
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from stdc_fast import checkpoints
from stdc_fast.errors import UserError
from stdc_fast.plan import Plan, build, optimise
from stdc_fast.plan.arena import layout
from stdc_fast.plan.cost import costs
from stdc_fast.plan.ops import Add, Buffer, Mean, Op, View
from stdc_fast.plan.rewrites import fuse_prologues
from stdc_fast.reference import ConvBNReLU, FeatureFusion, STDCModule, STDCSeg
from stdc_fast.viewer import show
from stdc_fast.viewer.facts import short, survey
from stdc_fast.viewer.figure import _STRIDES, figure
from stdc_fast.viewer.kinds import COLOURS, WORDS
from stdc_fast.viewer.save import FIXED

SIZE = (1, 512, 1024, 2)


@functools.cache
def network(variant="stdc1"):
    return STDCSeg(variant, 19).eval()


@functools.cache
def plan(variant="stdc1", rewritten=True):
    written = build(network(variant))
    return optimise(written) if rewritten else written


@functools.cache
def page(variant="stdc1", rewritten=True):
    with matplotlib.style.context(["default", FIXED]):
        title = "stdc1_camvid: STDC-Seg stdc1, bfloat16"
        return figure(survey(plan(variant, rewritten), *SIZE, title=title))


def cost_of(found, name, *size):
    (cost,) = (c for c in costs(found, *size) if c.op == name)
    return cost


# ---------------------------------------------------------------- costs


@pytest.mark.parametrize(
    ("variant", "rewritten", "gflop"),
    [("stdc1", False, 33.73), ("stdc2", False, 46.91), ("stdc1", True, 32.05), ("stdc2", True, 45.24)],
)
def test_work_of_the_networks(variant, rewritten, gflop):
    macs = sum(cost.macs for cost in costs(plan(variant, rewritten), *SIZE))
    assert abs(2 * macs / 1e9 - gflop) < 0.005


@pytest.mark.parametrize(("variant", "gmac"), [("stdc1", 16.86), ("stdc2", 23.46)])
def test_published_multiply_adds(variant, gmac):
    assert abs(sum(cost.macs for cost in costs(plan(variant, False), *SIZE)) / 1e9 - gmac) < 0.005


@pytest.mark.parametrize("shape", [(1, 64, 96), (2, 75, 101)])
def test_multiply_adds_are_those_torch_counts(shape):
    with torch.device("meta"):
        module = STDCSeg("stdc1", 19).eval()
    with FlopCounterMode(display=False) as counter:
        module(torch.empty(shape[0], 3, *shape[1:], device="meta"))
    assert 2 * sum(cost.macs for cost in costs(plan(rewritten=False), *shape, 4)) == counter.get_total_flops()


@pytest.mark.parametrize("itemsize", [2, 4, 8])
def test_convolution_by_hand(itemsize):
    found = optimise(build(ConvBNReLU(8, 16, 3, 2).eval()))
    (cost,) = costs(found, 2, 5, 7, itemsize)
    assert cost.inputs == ((2, 5, 7, 8),)
    assert cost.outputs == ((2, 3, 4, 16),)
    assert cost.macs == 2 * 3 * 4 * 16 * 8 * 9
    assert cost.read == 2 * 5 * 7 * 8 * itemsize
    assert cost.written == 2 * 3 * 4 * 16 * itemsize
    assert cost.weights == 16 * 8 * 9 * itemsize + 16 * max(4, itemsize)
    assert cost.bytes == cost.read + cost.written + cost.weights
    assert cost.intensity == pytest.approx(2 * cost.macs / cost.bytes)


def test_down_by_hand():
    found = optimise(build(STDCModule(64, 256, 4, 2).eval()))
    assert found.ops[0].kind == "down"
    cost = costs(found, 1, 9, 6, 2)[0]
    assert cost.outputs == ((1, 5, 3, 128), (1, 5, 3, 128))
    assert cost.macs == 9 * 6 * 64 * 128 + 5 * 3 * 128 * 9
    assert cost.read == 9 * 6 * 64 * 2
    assert cost.written == 2 * 5 * 3 * 128 * 2
    assert cost.weights == (64 * 128 + 128 * 9) * 2 + 2 * 128 * 4


# Sets of 2x2 weights for the size of the map at 1/8: of even and odd rows, and of a last row of odd height.
@pytest.mark.parametrize(
    ("size", "sets"), [((64, 64), 4), ((65, 64), 6), ((64, 65), 6), ((65, 65), 9), ((32, 8), 2), ((8, 8), 1)]
)
def test_sub_pixel_convolution_by_hand(size, sets):
    rows, columns = (-(-n // 8) for n in size)
    small = [-(-n // 16) for n in size]
    cost = cost_of(plan(), "cp.conv_head16.conv", 1, *size, 2)
    assert cost.inputs[0] == (1, *small, 128)
    assert cost.outputs == ((1, rows, columns, 128),)
    assert cost.macs == rows * columns * 128 * 128 * 4
    assert cost.read == 2 * small[0] * small[1] * 128 * 2 + 128 * 4  # two maps, and the vector that scales
    assert cost.weights == sets * 4 * 128 * 128 * 2 + 128 * 4


def test_other_ops_by_hand():
    found = plan()
    stem = cost_of(found, "cp.backbone.features.0.conv", 3, 64, 96, 2)
    assert (stem.macs, stem.read) == (3 * 32 * 48 * 32 * 27, 3 * 64 * 96 * 3)  # raw frames are bytes
    gate = cost_of(found, "ffm.conv2", 3, 64, 96, 2)
    assert (gate.macs, gate.read, gate.written) == (3 * 2 * 256 * 64, 3 * 256 * 4, 3 * 256 * 4)
    assert gate.weights == 2 * 256 * 64 * 2
    head = cost_of(found, "conv_out.conv_out", 1, 64, 96, 2)
    assert (head.macs, head.written) == (8 * 12 * 256 * 19, 8 * 12 * 19 * 4)  # logits are float32
    labels = cost_of(found, "upsample", 1, 64, 96, 2)
    assert (labels.macs, labels.read, labels.written) == (0, 8 * 12 * 19 * 4, 64 * 96)
    norm = cost_of(plan(rewritten=False), "cp.backbone.features.0.bn", 1, 64, 96, 2)
    assert (norm.macs, norm.read, norm.weights) == (0, 32 * 48 * 32 * 2, 4 * 32 * 4)
    assert cost_of(plan(rewritten=False), "normalise", 1, 64, 96, 2).written == 64 * 96 * 3 * 4


def test_what_is_read_twice_counts_once():
    buffers = {"x": Buffer("x", 6, 1), "y": Buffer("y", 4, 1)}
    add = Add(name="add", input=View("x", 0, 4), other=View("x", 2, 4), output=View("y", 0, 4))
    found = Plan("twice", buffers, (add,), ("x",), (View("y", 0, 4),), {})
    (cost,) = costs(found, 1, 3, 5, 2)
    assert cost.inputs == ((1, 3, 5, 4), (1, 3, 5, 4))
    assert (cost.read, cost.written, cost.weights, cost.macs) == (3 * 5 * 6 * 2, 3 * 5 * 4 * 2, 0, 0)


def test_both_forms_of_up_sampling_write_the_same():
    """In the 3x3 form the same op has nine taps."""
    wide = fuse_prologues(plan(rewritten=False))
    name, size = "cp.conv_head32.conv", (1, 80, 48, 2)
    nine, four = cost_of(wide, name, *size), cost_of(plan(), name, *size)
    assert nine.macs * 4 == four.macs * 9
    assert nine.written == four.written
    assert nine.inputs == four.inputs


# ---------------------------------------------------------------- dict


@pytest.mark.parametrize("rewritten", [False, True])
@pytest.mark.parametrize("size", [(1, 512, 1024, 2), (3, 75, 101, 4)])
def test_dict(rewritten, size):
    found = plan(rewritten=rewritten)
    facts = show.to_dict(found, *size)
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert [facts[key] for key in ("batch", "height", "width", "itemsize")] == list(size)
    assert facts["name"] == found.name
    assert facts["inputs"] == ["image"]
    assert facts["outputs"] == [{"buffer": "upsample", "offset": 0, "channels": 1}]

    expected = costs(found, *size)
    assert [op["name"] for op in facts["ops"]] == [op.name for op in found.ops]
    for shown, op, cost in zip(facts["ops"], found.ops, expected, strict=True):
        assert shown["kind"] == op.kind
        for key, views, shapes in (
            ("reads", op.reads, cost.inputs),
            ("writes", op.writes, cost.outputs),
        ):
            assert [View(v["buffer"], v["offset"], v["channels"]) for v in shown[key]] == views
            assert [tuple(v["shape"]) for v in shown[key]] == list(shapes)
        assert list(shown["weights"]) == op.weights
        assert shown["macs"] == cost.macs
        assert shown["bytes"] == shown["bytes_read"] + shown["bytes_written"] + shown["bytes_weights"]
        assert shown["intensity"] == cost.intensity
    totals = facts["totals"]
    assert totals["macs"] == sum(cost.macs for cost in expected)
    assert totals["bytes"] == sum(cost.bytes for cost in expected)
    assert totals["intensity"] == pytest.approx(2 * totals["macs"] / totals["bytes"])
    assert totals["weights"] == sum(weight.numel() for weight in found.weights.values())

    arena = layout(found, *size)
    assert list(facts["buffers"]) == list(found.buffers)
    for name, buffer in facts["buffers"].items():
        if name in ("image", "upsample"):  # the caller's
            assert buffer["arena"] is None
            assert buffer["lifetime"] is None
            continue
        span = arena.spans[name]
        assert buffer["shape"] == list(arena.shapes[name])
        assert buffer["arena"] == {"offset": span.start, "bytes": span.stop - span.start}
        assert buffer["arena"]["bytes"] == -(-buffer["bytes"] // 256) * 256
        assert buffer["lifetime"] == list(arena.lifetimes[name])
    assert totals["arena"] == arena.size
    assert totals["live"] == arena.live
    assert totals["unshared"] == sum(b["arena"]["bytes"] for b in facts["buffers"].values() if b["arena"])
    assert totals["live"] <= totals["arena"] < totals["unshared"]


def test_settings_in_the_dict():
    ops = {op["name"]: op for op in show.to_dict(plan(), *SIZE)["ops"]}
    up = ops["cp.conv_head16.conv"]
    assert up["settings"] == {"kernel": 2, "stride": 1, "depthwise": False, "act": "relu", "up": True}
    assert [view["as"] for view in up["reads"]] == ["inputs", "scale", "add"]
    assert ops["ffm.conv2"]["settings"] == {"acts": ["relu", "sigmoid+1"]}
    assert len(ops["cp.backbone.features.0.conv"]["settings"]["offset"]) == 3
    down = ops["cp.backbone.features.2.conv_list.0.conv"]
    assert [view["as"] for view in down["writes"]] == ["output", "pooled"]


# ---------------------------------------------------------------- table


@pytest.mark.parametrize(("variant", "rewritten"), [("stdc1", True), ("stdc1", False), ("stdc2", True)])
@pytest.mark.parametrize("size", [SIZE, (1, 75, 101, 4), (1024, 8000, 8000, 4)])
def test_table(variant, rewritten, size):
    found = plan(variant, rewritten)
    text = show.table(found, *size)
    assert text.isascii()
    lines = text.split("\n")
    assert max(map(len, lines)) <= 120
    assert all(line == line.rstrip() for line in lines)
    assert lines[0].startswith(found.name)
    assert f"{size[1]}x{size[2]}, batch {size[0]}" in lines[0]
    first = next(i for i, line in enumerate(lines) if set(line) == {"-"}) + 1
    rows = lines[first : first + len(found.ops)]
    facts = show.to_dict(found, *size)
    for i, (row, op, shown) in enumerate(zip(rows, found.ops, facts["ops"], strict=True)):
        words = row.split()
        assert words[:3] == [str(i), op.kind, short(op.name)]
        assert show.describe(found, op) in row
        shape = "x".join(map(str, shown["writes"][0]["shape"][1:]))
        numbers = [f"{shown['macs'] / 1e6:.1f}", f"{shown['bytes'] / 1e3:.1f}", f"{shown['intensity']:.1f}"]
        assert words[-4:] == [shape, *numbers]
    rule, total, arena = lines[first + len(found.ops) :]
    assert set(rule) == {"-"}
    facts = facts["totals"]
    assert f"{2 * facts['macs'] / 1e9:.2f} GFLOP" in total
    assert total.split()[-3:] == [
        f"{facts['macs'] / 1e6:.1f}", f"{facts['bytes'] / 1e3:.1f}", f"{facts['intensity']:.1f}"
    ]  # fmt: skip
    for key in ("arena", "live", "unshared"):
        assert f"{facts[key] / 1e3:.1f} KB" in arena


def test_names_and_words():
    assert short("cp.backbone.features.2.conv_list.0.conv") == "features.2.conv_list.0"
    assert short("cp.arm32.conv.conv") == "arm32.conv"
    assert short("conv_out.conv_out") == "conv_out.conv_out"
    for found in (plan(), plan(rewritten=False), plan("stdc2")):
        assert len({short(op.name) for op in found.ops}) == len(found.ops)
    ops = {short(op.name): show.describe(plan(), op) for op in plan().ops}
    assert ops["features.0"] == "image - mean, 3x3 s2 relu"
    assert ops["features.1"] == "3x3 s2 relu"
    assert ops["features.2.conv_list.0"] == "1x1 relu, 3x3 dw s2 + pool"
    assert ops["features.7.conv_list.0"] == "1x1 relu, mean"
    assert ops["conv_head32"] == "2x2 up relu, *scale +vector"
    assert ops["conv_head16"] == "2x2 up relu, *scale +map"
    assert ops["ffm.convblk"] == "1x1 relu, 2 inputs, mean"
    assert ops["ffm.conv2"] == "matvec relu, matvec sigmoid+1"
    assert ops["conv_out.conv_out"] == "1x1"
    assert ops["upsample"] == "bilinear x8, argmax"
    written = {short(op.name): show.describe(plan(rewritten=False), op) for op in plan(rewritten=False).ops}
    assert written["features.2.avd_layer.0"] == "3x3 dw s2"
    assert written["add32"] == "map + vector"
    assert written["add16"] == "map + map"
    wide = fuse_prologues(plan(rewritten=False))
    (up,) = (op for op in wide.ops if op.name == "cp.conv_head32.conv")
    assert show.describe(wide, up) == "3x3 up, *scale +vector"


def test_every_kind_has_words_and_a_colour():
    kinds = {kind.__name__.lower() for kind in Op.__subclasses__()}
    assert set(WORDS) == kinds
    convolutions = {"conv 3x3", "conv 1x1", "conv 2x2 up", "conv depthwise"}
    assert set(COLOURS) == kinds - {"conv"} | convolutions
    assert len({*COLOURS.values(), *_STRIDES.values()}) == len(COLOURS) + len(_STRIDES)


def test_what_is_too_long_is_cut():
    buffers = {"x": Buffer("x", 6, 1), "y": Buffer("y", 6, 0, "float32")}
    mean = Mean(name="m" * 200, input=View("x", 0, 6), output=View("y", 0, 6))
    found = Plan("long", buffers, (mean,), ("x",), (View("y", 0, 6),), {})
    text = show.table(found, 1, 64, 64, 2, title="\x1b[31m\n\u6f22$_$" + "x" * 200)
    assert text.isascii()
    assert max(map(len, text.split("\n"))) == 120
    assert text.split("\n")[0].endswith("x, 64x64, batch 1")
    assert "mmm.." in text
    assert "\x1b" not in text


# ---------------------------------------------------------------- figure


def test_draw_writes_both_formats(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # it would choose a screen to draw on
    for name in ("a.svg", "b.PNG"):
        show.draw(plan(), tmp_path / "new" / name, *SIZE, title="a $name$ & <more>")
    with Image.open(tmp_path / "new" / "b.PNG") as image:
        image.load()
        assert image.format == "PNG"
        assert min(image.size) > 500
    root = xml.etree.ElementTree.parse(tmp_path / "new" / "a.svg").getroot()
    assert root.tag.endswith("svg")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["a.svg", "b.PNG"]


def test_figures_are_the_same_every_time(tmp_path, monkeypatch):
    found = optimise(build(FeatureFusion(384, 256).eval(), channels=[256, 128]))
    for suffix in ("svg", "png"):
        show.draw(found, tmp_path / f"a.{suffix}", 1, 64, 64, 4)
        with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.hashsalt": None}):
            show.draw(found, tmp_path / f"b.{suffix}", 1, 64, 64, 4)
            assert matplotlib.rcParams["font.size"] == 30  # the caller's settings come back
        show.draw(found, tmp_path / f"c.{suffix}", 1, 64, 65, 4)
        a, b, c = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in "abc")
        assert a == b
        assert a != c
    assert b"date" not in (tmp_path / "a.svg").read_bytes()


@pytest.mark.parametrize("rewritten", [True, False])
def test_figure_holds_the_plan(rewritten):
    found = plan(rewritten=rewritten)
    facts = survey(found, *SIZE, title=None)
    upper, lower = sorted(page(rewritten=rewritten).axes, key=lambda axes: -axes.get_position().y0)
    boxes = {
        round(box.get_x() + box.get_width() / 2): box
        for box in upper.patches
        if isinstance(box, Rectangle) and box.get_width() < 0.9
    }
    assert sorted(boxes) == list(range(len(found.ops)))
    heights = [boxes[i].get_height() for i in range(len(found.ops))]
    most = max(range(len(found.ops)), key=lambda i: facts.costs[i].macs)
    assert max(heights) == heights[most]
    rows = {stride: row for row, stride in enumerate((1, 2, 4, 8, 16, 32, 0))}
    for i, op in enumerate(found.ops):
        y = boxes[i].get_y() + heights[i] / 2
        assert y == pytest.approx(rows[found.buffers[op.writes[0].buffer].stride])
    places = {
        (p.get_x(), p.get_y(), p.get_width(), p.get_height())
        for p in lower.patches
        if isinstance(p, Rectangle)
    }
    for name, span in facts.arena.spans.items():
        first, last = facts.arena.lifetimes[name]
        place = (first - 0.5, span.start / 1e3, last - first + 1, (span.stop - span.start) / 1e3)
        assert place in places, name


@pytest.mark.parametrize(("variant", "rewritten"), [("stdc1", True), ("stdc1", False), ("stdc2", True)])
def test_no_text_lies_on_another_or_outside(variant, rewritten):
    drawn = page(variant, rewritten)
    renderer = drawn.canvas.get_renderer()
    drawn.draw(renderer)
    shown = [text for text in drawn.findobj(Text) if text.get_visible() and text.get_text().strip()]
    texts = [(text.get_text(), text.get_window_extent(renderer)) for text in shown]
    assert {"features.2", "conv_head16", "ffm", "vector", "op number"} <= {text for text, _ in texts}
    for text, box in texts:
        assert drawn.bbox.x0 <= box.x0 <= box.x1 <= drawn.bbox.x1, text
        assert drawn.bbox.y0 <= box.y0 <= box.y1 <= drawn.bbox.y1, text
    for (one, a), (other, b) in itertools.combinations(texts, 2):
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        up = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert across < 1 or up < 1, (one, other)


def test_blocks_can_be_drawn_too(tmp_path):
    """One without any buffer of its own among them."""
    for i, module in enumerate([ConvBNReLU(8, 16, 3, 2), STDCModule(64, 256, 4, 2)]):
        for found in (build(module.eval()), optimise(build(module.eval()))):
            show.draw(found, tmp_path / f"{i}.png", 1, 64, 64, 4)


def test_what_draw_refuses(tmp_path, monkeypatch, unprivileged):
    for name in ("plan.gif", "plan", "plan.svg.gz", ".svg"):
        with pytest.raises(UserError, match=r"\.svg or \.png") as refusal:
            show.draw(plan(), tmp_path / name, *SIZE)
        assert name in str(refusal.value)
    small = build(ConvBNReLU(8, 16, 1).eval())
    (tmp_path / "file").write_text("keep")
    (tmp_path / "locked").mkdir(mode=0o555)
    with unprivileged():
        for place in ("file", "locked"):
            with pytest.raises(UserError, match="can not be written"):
                show.draw(small, tmp_path / place / "plan.svg", 1, 64, 64, 4)
    assert list((tmp_path / "locked").iterdir()) == []
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError) as refusal:
        show.draw(small, tmp_path / "plan.svg", 1, 64, 64, 4)
    assert "pip install matplotlib" in str(refusal.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "locked"]


# ---------------------------------------------------------------- stdc-fast info --plan


def refused(run, *words):
    assert run.code == 2, run.err
    assert run.out == ""
    (message,) = run.lines
    assert message.startswith("stdc-fast: ")
    for word in words:
        assert word in message


def test_info_plan(run_cli, tiny_weights, tiny_network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written = build(tiny_network)
    rewritten = optimise(written)
    options = ("--size", "65X97", "--batch", "2", "--dtype", "float16", "--draw", "new/plan.svg")
    run = run_cli("info", "--plan", tiny_weights, *options)
    size, title = (2, 65, 97, 2), "tiny: STDC-Seg stdc1, float16"
    assert run.code == 0
    assert run.out == show.table(rewritten, *size, title=title) + "\n"
    assert run.lines == ["new/plan.svg: written"]
    show.draw(rewritten, tmp_path / "same.svg", *size, title=title)
    assert (tmp_path / "new" / "plan.svg").read_bytes() == (tmp_path / "same.svg").read_bytes()

    run = run_cli("info", "--json", "--plan", tiny_weights, "--written")
    assert (run.code, run.err) == (0, "")
    facts = {"model": "tiny", "dtype": "float32", "written": True}
    assert json.loads(run.out) == facts | show.to_dict(written, 1, 512, 1024, 4)


def test_what_info_plan_refuses(run_cli, tiny_network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "file").write_text("keep")
    refused(run_cli("info", "--plan", "stdc1_camvit"), "stdc1_camvit", "did you mean stdc1_camvid")
    refused(run_cli("info", "--plan", "missing.pth"), "missing.pth", "no such file")
    refused(run_cli("info", "--plan", "text.pth"), "text.pth")
    plan = ("info", "--plan", "stdc1_camvid")
    for size in ("64", "31x64", "64x31", "native", "8000x8001", ""):
        refused(run_cli(*plan, "--size", size), "--size", size)
    refused(run_cli(*plan, "--dtype", "float64"), "float64", "bfloat16")
    refused(run_cli(*plan, "--draw", "plan.pdf"), "plan.pdf", ".svg or .png")
    refused(run_cli(*plan, "--draw", "file/plan.svg"), "file/plan.svg", "can not be written")
    for batch in ("0", "1025", "x"):
        assert run_cli(*plan, "--batch", batch).code == 2
    for options in (("--size", "64x64"), ("--batch", "1"), ("--dtype", "float32"), ("--written",),
                    ("--draw", "plan.svg")):  # fmt: skip
        refused(run_cli("info", *options), options[0], "--plan MODEL")
        refused(run_cli("info", "--json", *options), options[0], "--plan MODEL")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "text.pth"]


def test_weights_beyond_float32(run_cli, tiny_network, tmp_path):
    state = checkpoints.inference_state(tiny_network)
    state = {k: v.double() if v.is_floating_point() else v for k, v in state.items()}
    state["ffm.conv1.weight"] = torch.full_like(state["ffm.conv1.weight"], 1e300)
    checkpoints.save(state, tmp_path / "huge.safetensors", {}, half=False)
    refused(run_cli("info", "--plan", tmp_path / "huge.safetensors"), "huge.safetensors", "ffm.conv1.weight")


def test_the_table_in_the_docs(run_cli):
    """Write it again: the command is here."""
    options = ("--size", "512x1024", "--dtype", "bfloat16")
    run = run_cli("info", "--plan", "stdc1_camvid", *options)
    assert run.out == (ROOT / "docs/results/plan_stdc1_512x1024.txt").read_text()
