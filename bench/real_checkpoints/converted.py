"""Loads files that ``stdc-fast convert`` wrote in the code that they are for, and compares logits with ours.

python converted.py write OUT                   # where stdc_fast is installed
python converted.py mmseg OUT                   # each where that code is, one JSON object a line
python converted.py super-gradients OUT
python converted.py official OUT SOURCE         # a checkout of the paper's code, see official.py
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

MODEL = "stdc1_camvid"


def write(out: Path) -> None:
    """The embedded weights for each code base, an input, and our logits in float64."""
    from stdc_fast import checkpoints
    from stdc_fast.zoo import find

    out.mkdir(parents=True, exist_ok=True)
    for target in ("official", "mmseg", "super-gradients"):
        command = (
            sys.executable,
            "-m",
            "stdc_fast",
            "convert",
            MODEL,
            str(out / f"{target}.pth"),
            "--to",
            target,
        )
        subprocess.run(command, check=True)
    x = torch.randn(1, 3, 96, 160, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = checkpoints.read(find(MODEL)).network(torch.float64)(x)
    np.savez(out / "ours.npz", x=x.numpy(), logits=logits.numpy())


def mmseg(content: dict, source: str | None):
    import mmseg1

    mmseg1.init_default_scope("mmseg")
    network = mmseg1.MODELS.build(mmseg1.Config.fromstring(content["meta"]["cfg"], ".py").model)
    network.load_state_dict(content["state_dict"], strict=True)
    network = network.double().eval()

    def run(x):
        shape = x.shape[2:]
        return network.encode_decode(x, [{"ori_shape": shape, "img_shape": shape, "pad_shape": shape}])

    return run, "strict", mmseg1.PACKAGES


def super_gradients(content: dict, source: str | None):
    import super_gradients_files as sg

    network = sg.models.get("stdc1_seg", num_classes=11, arch_params={"use_aux_heads": False})
    assert list(content["net"]) == list(network.state_dict())  # it loads by order where names differ
    network.load_state_dict(content["net"], strict=True)
    return network.double().eval(), "strict, in the same order", sg.PACKAGES


def official(content: dict, source: str | None):
    import official as code

    network = code.source(Path(source)).BiSeNet("STDCNet813", 11, use_boundary_8=True).double()
    missing = network.load_state_dict(content, strict=False)
    assert not missing.unexpected_keys
    network.eval()
    return lambda x: network(x)[0], "strict=False", code.PACKAGES


def main(which: str, out: str, source: str | None = None) -> None:
    folder = Path(out)
    if which == "write":
        write(folder)
        return
    load = {"mmseg": mmseg, "super-gradients": super_gradients, "official": official}[which]
    run, how, packages = load(torch.load(folder / f"{which}.pth", weights_only=True), source)
    ours = np.load(folder / "ours.npz")
    with torch.inference_mode():
        logits = run(torch.from_numpy(ours["x"])).numpy()
    error = float(np.abs(logits - ours["logits"]).max() / np.abs(ours["logits"]).max())
    print(json.dumps({"target": which, "packages": packages, "loaded": how, "error": error}))


if __name__ == "__main__":
    main(*sys.argv[1:])
