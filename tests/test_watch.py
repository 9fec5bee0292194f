"""What tells whether a module is as it was packed: the native call, and the same in Python."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

import stdc_fast
from stdc_fast.freshness import Watched


def test_a_part_in_the_same_place_is_noticed(tiny_model):
    """Its address and strides are those of the whole."""
    model = copy.deepcopy(tiny_model)
    watched = model._watched
    assert watched.snapshot(model.network) is not None
    state = watched.current
    weight = next(w for w in model.network.parameters() if w.ndim == 4)
    whole = weight.data
    weight.data = whole[: len(whole) // 2]
    assert weight.data_ptr() == whole.data_ptr() and weight.stride() == whole.stride()
    assert not watched.holds(state, model.network)
    weight.data = whole
    assert watched.holds(state, model.network)


def test_settings_that_a_plan_follows_are_noticed(tiny_model):
    """Labels before any was changed are in a kept way, which must not be gone again."""
    frames = torch.randint(
        0, 256, (1, 64, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    for name, value in (("align_corners", False), ("mean", (0.1, 0.9, 0.5)), ("std", (0.5, 0.1, 0.9))):
        model = copy.deepcopy(tiny_model)
        for _ in range(2):
            before = model.label(frames, size=(33, 49))
        setattr(model.network, name, value)
        after = model.label(frames, size=(33, 49))
        assert (after != before).any(), name
        fresh = stdc_fast.Segmenter(copy.deepcopy(model.network), model.classes)
        assert torch.equal(after, fresh.label(frames, size=(33, 49))), name
        assert model._watched.current is not None, "a plan runs it"


@pytest.mark.parametrize("native", [True, False])
def test_attributes_put_back_in_another_order_are_the_same(native, tiny_model):
    model = copy.deepcopy(tiny_model)
    if model._watched.snapshot(model.network)._watch is None and native:
        pytest.skip("needs the native module and torch 2.10")
    state = model._watched.current
    if not native:
        state._watch = None
    inner = next(m for m in model.network.modules() if isinstance(m, nn.Conv2d))
    groups = inner.__dict__.pop("groups")
    assert not state.holds(model.network)
    inner.__dict__["groups"] = groups
    assert state.holds(model.network)
    inner.__dict__["groups"] = groups + 1
    assert not state.holds(model.network)


def test_a_forgotten_model_is_freed_with_what_watches_it():
    module = nn.Sequential(nn.Conv2d(3, 3, 1)).eval()
    module.watched = Watched(module)
    assert module.watched.snapshot(module) is not None
    gone = weakref.ref(module)
    del module
    gc.collect()
    assert gone() is None
