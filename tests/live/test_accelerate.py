"""Live models of other code bases: the same outputs by a plan, and untouched wherever that could differ."""

import copy
import functools
import io
import logging
import pickle

import families
import pytest
import torch
from families.official import Evaluated
from plans import error, one_thread
from torch import nn

import stdc_fast
from stdc_fast import UserError, _native
from stdc_fast.live import probe
from stdc_fast.live.accelerate import Live
from stdc_fast.reference import STDCSeg

IMAGE = torch.randn((1, 3, 64, 96), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True, scope="module")
def threads():
    with one_thread():
        yield


class Segmentor(nn.Module):
    """mmsegmentation's way of calling: features, then a head whose ``predict`` resizes by the metas."""

    def __init__(self, network):
        super().__init__()
        self.backbone, self.auxiliary_head = Backbone(network.backbone), network.auxiliary_head
        self.decode_head = Head(network.decode_head)

    def extract_feat(self, inputs):
        return self.backbone(inputs)

    def encode_decode(self, inputs, batch_img_metas):
        return self.decode_head.predict(self.extract_feat(inputs), batch_img_metas, None)

    def _forward(self, inputs, data_samples=None):
        return self.decode_head.forward(self.extract_feat(inputs))

    def forward(self, inputs, mode="tensor"):
        return self._forward(inputs)

    def slide(self, inputs):
        half = inputs.shape[3] // 2
        parts = inputs[..., :half], inputs[..., half:]
        metas = [{"img_shape": parts[0].shape[2:]}]
        return torch.cat([self.encode_decode(part, metas) for part in parts], 3)


class Backbone(nn.Module):
    def __init__(self, body):
        super().__init__()
        for name, child in body.named_children():
            self.add_module(name, child)

    def forward(self, x):
        features = families.parts.cascade(x, self.backbone.stages)
        y, outputs = self.conv_avg(features[4].mean((2, 3), keepdim=True)), []
        for i in range(2):
            y = self.convs[i](families.parts.nearest(self.arms[i](features[4 - i]) + y, features[3 - i]))
            outputs.append(y)
        return (features[2], *outputs, self.ffm(features[2], y))


class Head(nn.Module):
    align_corners = True

    def __init__(self, head):
        super().__init__()
        self.convs, self.conv_seg = head.convs, head.conv_seg

    def forward(self, inputs):
        return self.conv_seg(self.convs(inputs[3]))

    def predict(self, inputs, metas, test_cfg):
        y = self.forward(inputs)
        return nn.functional.interpolate(
            y, metas[0]["img_shape"], mode="bilinear", align_corners=self.align_corners
        )


def build(kind, classes=5, backbone="stdc1"):
    if kind == "mmseg":
        return Segmentor(families.build("mmseg", backbone, classes)).eval()
    model = families.build("official" if kind == "tuple" else kind, backbone, classes)
    if kind == "tuple":
        model.__class__ = Evaluated
    return model


def made(kind, **options):
    return stdc_fast.accelerate(build(kind), **options).requires_grad_(False)


@pytest.fixture(scope="module")
def fast():
    """An accelerated model of a kind, and one as it was; tests that change them take copies."""
    kept = {}

    def get(kind):
        if kind not in kept:
            kept[kind] = made(kind), build(kind).requires_grad_(False)
        return kept[kind]

    return get


@pytest.fixture
def ran(monkeypatch):
    """Counts logits that a plan of the whole gave."""
    count = []
    plain = Live._packed

    def packed(self, precision):
        executable = plain(self, precision)
        logits = executable.logits
        executable.logits = lambda *a, **k: count.append(1) or logits(*a, **k)
        return executable

    monkeypatch.setattr(Live, "_packed", packed)
    return count


@pytest.mark.parametrize("kind", ["official", "official-plain", "mmseg", "super-gradients"])
def test_the_whole_network_is_one_plan(kind, fast, ran):
    model, own = fast(kind)
    model = copy.deepcopy(model)
    assert type(model) is type(own)
    assert list(model.state_dict()) == list(own.state_dict())
    for x in (IMAGE, IMAGE.repeat(2, 1, 1, 1).contiguous(memory_format=torch.channels_last)):
        got, expected = model(x), own(x)
        assert error(got, expected) < 1e-5
        assert got.dtype == expected.dtype and got.stride() == expected.stride()
    assert len(ran) == 2
    report = stdc_fast.acceleration(model)
    assert (report.how, report.fast) == ("whole", ("",))
    assert report.error < 1e-5 and report.parts[0].error < 1e-10
    assert "one plan" in str(report)


@pytest.mark.parametrize("kind", ["official-plain", "mmseg", "super-gradients"])
def test_the_deeper_backbone(kind):
    own = build(kind, 3, "stdc2").requires_grad_(False)
    model = stdc_fast.accelerate(copy.deepcopy(own))
    assert stdc_fast.acceleration(model).how == "whole"
    assert error(model(IMAGE), own(IMAGE)) < 1e-5


def test_mmsegmentations_own_methods_see_the_fast_logits(fast, ran):
    model, own = map(copy.deepcopy, fast("mmseg"))
    metas = [{"img_shape": torch.Size((70, 50))}]
    assert error(model.encode_decode(IMAGE, metas), own.encode_decode(IMAGE, metas)) < 1e-5
    assert (
        error(model.encode_decode(inputs=IMAGE, batch_img_metas=metas), own.encode_decode(IMAGE, metas))
        < 1e-5
    )
    assert error(model.slide(IMAGE), own.slide(IMAGE)) < 1e-5
    assert len(ran) == 4
    assert error(model.extract_feat(IMAGE)[3], own.extract_feat(IMAGE)[3]) == 0
    model.decode_head.align_corners = own.decode_head.align_corners = False
    assert error(model.encode_decode(IMAGE, metas), own.encode_decode(IMAGE, metas)) < 1e-5


def test_sizes_that_the_model_refuses_are_still_refused(fast):
    model, own = fast("super-gradients")
    x = torch.randn(1, 3, 49, 83)
    with pytest.raises(RuntimeError) as expected:
        own(x)
    with pytest.raises(RuntimeError) as got:
        model(x)
    assert str(got.value) == str(expected.value)


def test_several_outputs_are_blocks_or_the_main_one_alone(ran):
    model, own = build("tuple").requires_grad_(False), build("tuple").requires_grad_(False)
    expected = own(IMAGE)
    stdc_fast.accelerate(model)
    got = model(IMAGE)
    assert len(got) == len(expected) == 4
    assert all(error(a, b) < 1e-5 for a, b in zip(got, expected, strict=True))
    report = stdc_fast.acceleration(model)
    assert report.how == "blocks" and not report.parts[0].fast and 'outputs="main"' in report.parts[0].why
    assert {"cp.backbone.features.3", "ffm", "conv_out", "conv_out16", "conv_out_sp8"} <= set(report.fast)
    assert "conv_out_sp2" not in report.fast
    stdc_fast.accelerate(model, outputs="main")
    got = model(IMAGE)
    assert error(got[0], expected[0]) < 1e-5 and got[1:] == (None,) * 3
    assert type(got) is tuple and len(ran) == 1
    model.boundary = False  # it returns another number of outputs now
    with torch.no_grad():
        assert len(model(IMAGE)) == 3
        assert model(IMAGE)[1:] == (None,) * 2


def test_restore_leaves_nothing(fast):
    model, own = map(copy.deepcopy, fast("official"))
    assert stdc_fast.restore(model) is model
    assert torch.equal(model(IMAGE), own(IMAGE))
    assert not any("forward" in vars(m) for m in model.modules())
    with pytest.raises(UserError, match="is not accelerated"):
        stdc_fast.acceleration(model)
    with stdc_fast.accelerated(model) as same:
        assert same is model and stdc_fast.acceleration(model).how == "whole"
    assert "forward" not in vars(model)


def test_changed_weights_are_noticed(fast, ran):
    model, own = map(copy.deepcopy, fast("official"))
    model(IMAGE)
    for change in (
        lambda m: m.ffm.conv1.weight.mul_(-1.5),
        lambda m: m.cp.arm16.conv.bn.running_mean.add_(1),
        lambda m: m.load_state_dict(build("official").state_dict()),
    ):
        change(model), change(own)
        assert error(model(IMAGE), own(IMAGE)) < 1e-5
    assert len(ran) == 4


class Tuned(families.official.Official):
    """Does to its logits what attributes of every kind say, which is nothing at first."""

    def settle(self):
        self.after, self.scale = torch.positive, functools.partial(torch.mul, other=1.0)
        self.factors, self.table = [1.0], {"by": (0, [1.0])}
        return self

    def forward(self, x):
        y = self.scale(self.after(super().forward(x)))
        return y * self.factors[0] * self.table["by"][1][0]


@pytest.mark.parametrize("native", [True, False])
def test_changed_settings_are_noticed(native, ran, monkeypatch):
    if not native:
        monkeypatch.setattr(_native, "why_not", lambda: "not here")
    own = build("official").requires_grad_(False)
    own.__class__ = Tuned
    model = stdc_fast.accelerate(copy.deepcopy(own.settle()))
    for change in (
        lambda m: setattr(m, "after", torch.neg),
        lambda m: setattr(m, "after", lambda y: y + 1),
        lambda m: setattr(m, "scale", functools.partial(torch.mul, other=2.0)),
        lambda m: m.factors.__setitem__(0, 3.0),
        lambda m: m.table["by"][1].__setitem__(0, 4.0),
    ):
        fast, plain, count = copy.deepcopy(model), copy.deepcopy(own), len(ran)
        assert error(fast(IMAGE), plain(IMAGE)) < 1e-5
        assert len(ran) == count + 1, "a copy has the settings of its model"
        before = plain(IMAGE)
        change(fast), change(plain)
        assert error(fast(IMAGE), plain(IMAGE)) < 1e-5 < error(before, plain(IMAGE))
        assert len(ran) == count + 1


def test_training_and_gradients_are_its_own(fast, ran, caplog):
    model, own = map(copy.deepcopy, fast("official-plain"))
    for m in (model, own):
        m.requires_grad_(True)
    x, y = (IMAGE.clone().requires_grad_() for _ in range(2))
    with caplog.at_level(logging.WARNING):
        model(x).square().mean().backward()
        model(x.detach())
    own(y).square().mean().backward()
    assert torch.equal(x.grad, y.grad)
    assert torch.equal(model.ffm.conv1.weight.grad, own.ffm.conv1.weight.grad)
    assert [r.getMessage().count("gradients are recorded") for r in caplog.records] == [1]
    twice = IMAGE.repeat(2, 1, 1, 1)
    assert torch.equal(model.train()(twice), own.train()(twice))
    assert not ran
    optimizer = [torch.optim.SGD(m.parameters(), 0.01) for m in (model, own)]
    for o in optimizer:
        o.step()
    with torch.no_grad():
        assert error(model.eval()(IMAGE), own.eval()(IMAGE)) < 1e-5
    assert len(ran) == 1


def test_hooks_run(fast, ran):
    model, own = map(copy.deepcopy, fast("official"))
    seen = []
    model.register_forward_hook(lambda *a: seen.append("outside"))
    model(IMAGE)
    assert seen == ["outside"] and len(ran) == 1
    handle = model.cp.arm16.register_forward_hook(lambda *a: seen.append("inside"))
    assert torch.equal(model(IMAGE), own(IMAGE))
    assert seen[1:] == ["inside", "outside"] and len(ran) == 1
    handle.remove()
    stdc_fast.restore(model).cp.arm16.conv.bn.register_forward_hook(lambda *a: seen.append("deep"))
    stdc_fast.accelerate(model)
    report = stdc_fast.acceleration(model)
    assert "forward hook on cp.arm16.conv.bn" in report.parts[0].why
    assert "cp.arm16" not in report.fast and "cp.arm32" in report.fast
    assert error(model(IMAGE), own(IMAGE)) < 1e-5
    assert "deep" in seen


def test_copies_are_fast_and_their_own(fast, ran):
    model, own = fast("official")
    twin = copy.deepcopy(model)
    assert error(twin(IMAGE), own(IMAGE)) < 1e-5
    assert len(ran) == 1
    with torch.no_grad():
        twin.ffm.conv1.weight.mul_(3)
    assert error(model(IMAGE), own(IMAGE)) < 1e-5
    assert error(twin(IMAGE), own(IMAGE)) > 1e-3
    assert stdc_fast.restore(twin) is twin and "forward" in vars(model)


def test_pickles_are_fast(ran):
    own = STDCSeg("stdc1", 5).eval().requires_grad_(False)
    model = pickle.loads(pickle.dumps(stdc_fast.accelerate(copy.deepcopy(own))))
    assert error(model(IMAGE), own(IMAGE)) < 1e-5
    assert len(ran) == 1


def test_low_precision(fast):
    model, own = fast("official")
    half = stdc_fast.accelerate(copy.deepcopy(stdc_fast.restore(copy.deepcopy(model))).bfloat16())
    got = half(IMAGE.bfloat16())
    assert got.dtype == torch.bfloat16 and error(got, own(IMAGE)) < 0.1
    low = stdc_fast.accelerate(stdc_fast.restore(copy.deepcopy(model)), dtype="bfloat16")
    assert low(IMAGE).dtype == torch.float32
    assert 1e-4 < error(low(IMAGE), own(IMAGE)) < 0.1
    assert stdc_fast.acceleration(low).dtype == "bfloat16"


def test_autocast_is_the_plan_s_dtype(fast, ran):
    model, own = map(copy.deepcopy, fast("official"))
    for _ in range(2):  # the first is the model's own
        with torch.autocast("cpu", torch.bfloat16):
            got, expected = model(IMAGE), own(IMAGE)
        assert got.dtype == expected.dtype
        assert error(got.float(), own(IMAGE)) < 0.1
    assert len(ran) == 1
    assert error(model(IMAGE), own(IMAGE)) < 1e-5  # outside of it nothing has changed


@pytest.mark.parametrize("kind", ["official", "tuple"])
def test_outputs_have_the_model_s_memory_format(kind, fast):
    model, own = fast(kind)
    wide = torch.randn((2, 3, 64, 160), generator=torch.Generator().manual_seed(2))
    for x in (wide[..., :96], wide[..., :96].mT, wide[:, :, ::2], wide[:1, :1].expand(2, 3, -1, -1),
              wide.to(memory_format=torch.channels_last)[..., :96]):  # fmt: skip
        got, expected = (m(x) if kind == "tuple" else [m(x)] for m in (model, own))
        assert [y.stride() for y in got[:3]] == [y.stride() for y in expected[:3]]
        assert all(error(a, b) < 1e-5 for a, b in zip(got, expected, strict=True))
    model, own = (copy.deepcopy(m).to(memory_format=torch.channels_last) for m in (model, own))
    got, expected = (m(wide) if kind == "tuple" else [m(wide)] for m in (model, own))
    assert [y.stride() for y in got[:3]] == [y.stride() for y in expected[:3]]


def test_inputs_that_no_plan_takes(fast, ran):
    model, own = fast("official")
    model = copy.deepcopy(model)
    bad = IMAGE.clone()
    bad[0, 0, 3, 3] = torch.nan
    assert torch.equal(model(bad).isnan(), own(bad).isnan())
    small = torch.randn(1, 3, 24, 24)
    assert torch.equal(model(small), own(small))
    assert not ran


# Models that only look like it.


def replaced(model, old, new):
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, old):
                setattr(module, name, new)


LOOKALIKES = {
    "activation": lambda m: replaced(m, nn.ReLU, nn.LeakyReLU(0.01).eval()),
    "clipping": lambda m: replaced(m, nn.ReLU, nn.ReLU6().eval()),
    "stride": lambda m: setattr(m.cp.backbone.features[1].conv, "stride", (1, 1)),
}


@pytest.mark.parametrize("name", LOOKALIKES)
def test_a_lookalike_is_left_alone(name):
    model = build("official-plain").requires_grad_(False)
    LOOKALIKES[name](model)
    expected, before = model(IMAGE), copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match=r"Official: .*(differs from the model's own by|is \[)") as refused:
        stdc_fast.accelerate(model, partly=False)
    assert "\n" not in str(refused.value)
    assert not any("forward" in vars(m) for m in model.modules())
    assert torch.equal(model(IMAGE), expected)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_eps_of_each_norm_is_read():
    model = build("official-plain").requires_grad_(False)
    for i, module in enumerate(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        module.eps = 1e-3 * (1 + i % 3)
    expected = model(IMAGE)
    assert error(stdc_fast.accelerate(model, partly=False)(IMAGE), expected) < 1e-5


def test_a_changed_head_leaves_the_other_blocks_fast():
    model = build("official-plain").requires_grad_(False)
    model.conv_out = nn.Sequential(nn.Conv2d(256, 7, 1), nn.Tanh()).eval().requires_grad_(False)
    expected = model(IMAGE)
    stdc_fast.accelerate(model)
    assert error(model(IMAGE), expected) < 1e-5
    report = stdc_fast.acceleration(model)
    assert "missing" in report.parts[0].why
    assert {"ffm", "cp.arm16", "cp.backbone.features.7"} <= set(report.fast)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda m: m.cp.arm16.train(), "cp.arm16 is in training mode"),
        (lambda m: m.ffm.conv1.weight.fill_(torch.nan), "ffm.conv1.weight holds NaN"),
        (lambda m: m.ffm.half(), "cast it to one dtype"),
        (lambda m: m.ffm.to("meta"), "meta device"),
    ],
    ids=["half in training", "nan", "two dtypes", "meta"],
)
def test_models_that_are_refused(spoil, words):
    model = build("official-plain").requires_grad_(False)
    spoil(model)
    with pytest.raises(UserError, match=words) as refused:
        stdc_fast.accelerate(model)
    assert "\n" not in str(refused.value)
    assert not any("forward" in vars(m) for m in model.modules())


def test_what_is_no_such_model(fast):
    for given, words in (
        ("model.pth", "expected an nn.Module"),
        (nn.Sequential(nn.Conv2d(3, 4, 1)), "not an STDC-Seg checkpoint"),
        (nn.ReLU(), "has no parameters"),
        (torch.compile(fast("official")[1]), "_orig_mod"),
    ):
        with pytest.raises(UserError, match=words):
            stdc_fast.accelerate(given)
    with pytest.raises(UserError, match='"all" or "main"'):
        stdc_fast.accelerate(fast("official")[1], outputs="first")
    with pytest.raises(UserError, match="probe must be"):
        stdc_fast.accelerate(fast("official")[1], probe=torch.zeros(3, 4, 4))
    with pytest.raises(UserError, match="did you mean eager"):
        stdc_fast.accelerate(fast("official")[1], backend="eagre")


def test_a_wrapper_is_looked_into(fast):
    inner = stdc_fast.restore(copy.deepcopy(fast("official")[0]))
    model = nn.DataParallel(inner)
    assert stdc_fast.accelerate(model) is model
    assert "forward" in vars(inner)
    assert error(model(IMAGE), fast("official")[1](IMAGE)) < 1e-5
    assert stdc_fast.acceleration(model).how == "whole"
    stdc_fast.restore(model)
    assert "forward" not in vars(inner)


def test_distributed_data_parallel_is_looked_into(fast, tmp_path):
    inner = stdc_fast.restore(copy.deepcopy(fast("official")[0])).requires_grad_(True)
    address = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(inner).eval()
        assert stdc_fast.accelerate(model) is model
        with torch.inference_mode():
            assert error(model(IMAGE), fast("official")[1](IMAGE)) < 1e-5
        assert stdc_fast.acceleration(model).how == "whole"
        model.train()(IMAGE).sum().backward()  # its own forward, with gradients that are reduced
        assert all(p.grad is not None for p in inner.cp.backbone.features[0].parameters())
    finally:
        torch.distributed.destroy_process_group()


def test_a_model_that_cannot_be_copied(fast):
    model = stdc_fast.restore(copy.deepcopy(fast("official")[0]))
    model.file = io.TextIOWrapper(io.BytesIO())
    with pytest.raises(UserError, match="can not be copied"):
        stdc_fast.accelerate(model)


def test_differences_are_seen():
    a = torch.ones(2, 3)
    assert probe.difference("x", a, a, 1e-9) == (0.0, "")
    assert "differs from the model's own by 1.0e+00" in probe.difference("x", a, a + 1, 1e-9)[1]
    assert probe.difference("x", a * torch.nan, a, 1e-9)[1]
    assert "is [3]" in probe.difference("x", a[0], a, 1e-9)[1]
