"""Checkpoints to read, whole or thin, and what reading them must give."""

import functools
import io

import families
import pytest
import torch

from stdc_fast import checkpoints
from stdc_fast.errors import UserError

METADATA = {
    "variant": "stdc1",
    "classes": [f"klaße {i}" for i in range(19)],
    "palette": [[i, 0, 255] for i in range(19)],
    "mean": [0.485, 0.456, 0.406],
    "scale": 0.5,
    "source": None,
}

DECODER_NORMS = (
    *(f"cp.arm{i}.{norm}" for i in (16, 32) for norm in ("conv.bn", "bn_atten")),
    *(f"cp.{name}.bn" for name in ("conv_head32", "conv_head16", "conv_avg")),
    "ffm.convblk.bn",
    "conv_out.conv.bn",
)


@functools.cache
def network(family, variant="stdc1"):
    """Shared by all tests: not to be changed."""
    return families.build(family, variant)


def weights(family, variant="stdc1"):
    return network(family, variant).state_dict()


def thin(family, variant="stdc1"):
    """A state dict of the right names and shapes, one random number per tensor: its files are small.

    Aliases stay aliases. Norm weights are negative.
    """
    made = {}
    for key, value in weights(family, variant).items():
        if value.data_ptr() not in made:
            number = (len(made) % 97 + 1) / 97
            batches = 3 if "conv_last" in key else 7
            one = torch.tensor(number if value.is_floating_point() else batches, dtype=value.dtype)
            if value.ndim == 1 and key.endswith(".weight"):
                one = -one
            made[value.data_ptr()] = one.expand(value.shape)
        made[key] = made[value.data_ptr()]
    return {k: v for k, v in made.items() if isinstance(k, str)}


def canonical(state):
    """What reading an in-place official state dict must give: names, values, nothing for training."""
    result = {}
    for key, value in state.items():
        trained = key.startswith(families.ROWS["official"].training_only)
        if trained or key.startswith("cp.backbone.x") or key.endswith("num_batches_tracked"):
            continue
        abn = key.removesuffix(".weight") in DECODER_NORMS
        result[key] = value.double().abs() + 1e-5 if abn else value
    return result


def write(path, content, **options):
    torch.save(content, path, **options)
    return path


def read(path, content, **options):
    return checkpoints.read(write(path, content, **options))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def relative_error(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


@torch.inference_mode()
def logits_error(loaded, family_network, sizes):
    """The largest relative error of the loaded network over inputs of the sizes, in float64."""
    ours, theirs = loaded.network(torch.float64), family_network.double()
    worst = 0.0
    for n, h, w in sizes:
        x = torch.randn(n, 3, h, w, dtype=torch.float64, generator=torch.Generator().manual_seed(h))
        expected = theirs(x)
        assert expected.shape == (n, 19, h, w)
        # A network whose output does not depend on the place would hide most mistakes.
        assert expected.std((2, 3)).min() > 0.1
        worst = max(worst, relative_error(ours(x), expected))
    return worst


def refusal(path, reader=checkpoints.read):
    """The message with which the file is refused: one line that names it."""
    with pytest.raises(UserError) as caught:
        reader(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    # torch's own explanations recommend to load with weights_only=False, which would run code.
    assert "weights_only" not in message
    return message.replace(str(path), "FILE")


def serialise(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()
