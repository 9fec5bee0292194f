"""PaddleSeg 2.8.0 on PaddlePaddle 3.3.1: python paddle_files.py OUT

PaddleSeg is installed without its dependencies. Empty modules stand for those that its models never call.
"""

from __future__ import annotations

import sys
from pathlib import Path

import corpus
import numpy as np
import paddle

corpus.stub(
    "six",
    "yaml",
    "requests",
    "sklearn",
    "sklearn.metrics",
    "cv2",
    "scipy",
    "scipy.ndimage",
    "scipy.optimize",
    "skimage",
    "filelock",
    "prettytable",
    "visualdl",
)
from paddleseg.models.backbones.stdcnet import STDC1, STDC2
from paddleseg.models.stdcseg import STDCSeg

PACKAGES = corpus.versions("paddlepaddle", "paddleseg", "numpy")
UNUSED = ("conv_out8.", "conv_out16.", "conv_out_sp")


def randomise(network: paddle.nn.Layer, seed: int = 0) -> None:
    """As :func:`corpus.randomise`, with biases of the convolutions."""
    rng = np.random.default_rng(seed)
    for layer in network.sublayers():
        if hasattr(layer, "_variance"):
            shape = layer.weight.shape
            sign = np.where(rng.random(shape) < 0.25, -1.0, 1.0)
            values = {
                layer.weight: rng.uniform(0.5, 1.5, shape) * sign,
                layer.bias: rng.normal(0, 0.2, shape),
                layer._mean: rng.normal(0, 0.2, shape),
                layer._variance: rng.uniform(0.5, 1.5, shape),
            }
        elif isinstance(layer, paddle.nn.Conv2D):
            shape = layer.weight.shape
            values = {layer.weight: rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)}
            if layer.bias is not None:
                values[layer.bias] = rng.normal(0, 0.5, layer.bias.shape)
        else:
            continue
        for tensor, value in values.items():
            tensor.set_value(value.astype("float32"))


def network(variant: str, classes: int = 19) -> paddle.nn.Layer:
    made = STDCSeg(num_classes=classes, backbone={"stdc1": STDC1, "stdc2": STDC2}[variant]())
    randomise(made)
    made.eval()
    return made


def arrays(made: paddle.nn.Layer, variant: str, height: int, width: int) -> dict[str, np.ndarray]:
    """Of a copy in float64, since a network's dtype is changed in place."""
    state = {k: v.astype("float64") for k, v in made.state_dict().items()}
    before = paddle.get_default_dtype()
    paddle.set_default_dtype("float64")
    double = STDCSeg(
        num_classes=made.conv_out.conv_out.weight.shape[0],
        backbone={"stdc1": STDC1, "stdc2": STDC2}[variant](),
    )
    double.set_state_dict(state)
    double.eval()
    paddle.set_default_dtype(before)
    for name, value in double.state_dict().items():
        assert value.dtype == paddle.float64, name
        assert np.array_equal(value.numpy(), state[name].numpy()), name
    x, low = corpus.picture(height, width), {}
    double.conv_out.register_forward_post_hook(lambda m, i, o: low.update(value=o.numpy()))
    with paddle.no_grad():
        full = double(paddle.to_tensor(x.astype("float64")))[0].numpy()
    return corpus.segmentation(x, low["value"], full)


def main(out: Path) -> None:
    for variant, classes in (("stdc1", 19), ("stdc2", 19), ("stdc1", 21)):
        made = network(variant, classes)
        state = made.state_dict()
        name = f"paddle_{variant}" + ("_voc" if classes == 21 else "")
        found = arrays(made, variant, 120, 250)
        used = sum(not k.startswith(UNUSED) for k in state)

        def write(file: str, content: object, how: str, found=found, used=used, **options) -> None:
            more = {k: options.pop(k) for k in ("expect", "why", "kind", "said") if k in options}
            paddle.save(content, str(out / file), **options)
            more.setdefault("said", "nothing of names; StructuredToParameterName@@ beside the arrays")
            answers = {} if more.get("expect") == "refuse" else dict(tensors=used, arrays=found)
            corpus.answer(out / file, family="paddle", packages=PACKAGES, made=how, **more, **answers)

        write(f"{name}.pdparams", state, "paddle.save(model.state_dict())")
        if variant == "stdc2":
            continue
        if classes == 19:
            for protocol in (2, 3):
                write(
                    f"{name}_protocol{protocol}.pdparams",
                    state,
                    f"paddle.save(model.state_dict(), protocol={protocol})",
                    protocol=protocol,
                )
            nested = {"model": state, "epoch": 3}
            write(
                f"{name}_nested.pdparams",
                nested,
                "paddle.save({'model': ..., 'epoch': 3}): every tensor is a pair (name, array)",
                said="builtins.tuple((parameter name, array)) in place of each array",
            )
            half = {k: v.astype("float16") for k, v in state.items()}
            stored = network(variant, classes)
            stored.set_state_dict({k: v.astype("float32") for k, v in half.items()})
            write(
                f"{name}_fp16.pdparams",
                half,
                "paddle.save of float16 weights",
                found=arrays(stored, variant, 120, 250),
            )
            optimizer = paddle.optimizer.Momentum(0.01, 0.9, parameters=made.parameters(), weight_decay=4e-5)
            made.train()
            total = sum(paddle.mean(y) for y in made(paddle.to_tensor(corpus.picture(64, 64))))
            total.backward()
            optimizer.step()
            write(
                f"{name}.pdopt",
                optimizer.state_dict(),
                "paddle.save(optimizer.state_dict())",
                expect="refuse",
                kind="none",
                why="holds the optimizer's state, not weights; give the .pdparams beside it",
            )
    made = STDC1()
    randomise(made)
    made.eval()
    file = out / "paddle_stdc1_backbone.pdparams"
    paddle.save(made.state_dict(), str(file))
    paddle.set_default_dtype("float64")
    double = STDC1()
    double.set_state_dict({k: v.astype("float64") for k, v in made.state_dict().items()})
    double.eval()
    paddle.set_default_dtype("float32")
    x = corpus.picture()
    with paddle.no_grad():
        features = double(paddle.to_tensor(x.astype("float64")))[2:]
    corpus.answer(
        file,
        family="paddle",
        packages=PACKAGES,
        made="paddle.save(backbone.state_dict()), as of the pretrained backbone",
        kind="backbone",
        tensors=len(made.state_dict()),
        arrays=dict(x=x, **{f"features{s}": f.numpy() for s, f in zip((8, 16, 32), features, strict=True)}),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
