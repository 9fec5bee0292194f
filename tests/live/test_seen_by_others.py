"""What others see of an accelerated model: the arguments and the code of its own methods."""

import copy
import inspect

import families
import pytest
import torch

import stdc_fast

IMAGE = torch.randn((1, 3, 64, 96), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["official-plain", "official"])
def test_exported_programs_and_signatures_are_the_model_s_own(kind):
    """torch.export looks into what it calls; others ask for its arguments by name."""
    own = families.build(kind, "stdc1", 5).requires_grad_(False)
    model = stdc_fast.accelerate(copy.deepcopy(own))
    assert inspect.signature(model.forward) == inspect.signature(own.forward)
    sides = {2: 32 * torch.export.Dim("h", max=99), 3: 32 * torch.export.Dim("w", max=99)}
    (argument,) = inspect.signature(own.forward).parameters
    program = torch.export.export(model, (IMAGE,), dynamic_shapes={argument: sides})
    image = torch.randn(1, 3, 96, 64)
    got, expected = program.module()(image), own(image)
    assert torch.equal(got[0], expected[0])
