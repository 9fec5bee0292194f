"""Which module may import which, read from the sources; and what importing the library does to a process."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench import rooms

ROOT = Path(__file__).resolve().parent.parent
IMPORTS = rooms.read(ROOT)

# By room or module (of stdc_fast): what it never imports. "" is the package itself, as `import stdc_fast`.
NEVER = {
    "plan": ("", "images", "checkpoints", "backends", "viewer", "segmenter"),
    "backends": ("", "segmenter", "zoo", "images", "checkpoints"),
    "checkpoints": ("backends", "segmenter", "zoo", "images"),
    "calibration": ("segmenter", "zoo"),
}
# What it imports, and nothing else.
ONLY = {
    "reference": ("reference", "errors"),
    "kernels": ("kernels",),
    "datasets": ("datasets", "classes", "errors", "images", "listing", "reference"),
}
# Who imports it, and nobody else.
BY = {
    "bulk": ("bulk", "cli"),
    "cli": ("cli", "__main__"),
    "viewer": ("viewer", "cli", "benchmark"),
    "serve": ("serve", "cli"),
}


def within(module, names):
    """Whether a module is one of these, or lies in one."""
    return any(
        module == "stdc_fast" if name == "" else f"{module}.".startswith(f"stdc_fast.{name}.")
        for name in names
    )


def broken(imports):
    """The imports that break a rule."""
    found = []
    for one in imports:
        never = [names for name, names in NEVER.items() if within(one.module, [name])]
        only = [names for name, names in ONLY.items() if within(one.module, [name])]
        by = [names for name, names in BY.items() if within(one.target, [name])]
        if (
            any(within(one.target, names) for names in never)
            or not all(within(one.target, names) for names in only)
            or not all(within(one.module, names) for names in by)
        ):
            found.append(str(one))
    return found


def test_rules():
    assert broken(IMPORTS) == []


def test_no_circle_at_import():
    assert rooms.circles(one for one in IMPORTS if not one.inside) == []


# The checkers, on a small tree made up.


@pytest.fixture
def tree(tmp_path):
    def make(**files):
        for name, text in {"stdc_fast.__init__": "", "kernels.__init__": "", **files}.items():
            file = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return rooms.read(tmp_path)

    return make


NAMES = (
    "images", "zoo", "segmenter", "errors", "checkpoints.__init__", "backends.__init__", "backends.cpu",
    "plan.__init__", "plan.ops", "viewer.show", "cli.__init__", "cli.options", "reference.layers", "train",
    "__main__",
)  # fmt: skip
MODULES = {f"stdc_fast.{name}": "" for name in NAMES}


@pytest.mark.parametrize(
    ("module", "line", "target"),
    [
        ("plan.ops", "from stdc_fast import images", "images"),
        ("plan.ops", "from stdc_fast.images import resize", "images"),
        ("plan.ops", "import stdc_fast.backends.cpu", "backends.cpu"),
        ("plan.ops", "from ..viewer import show", "viewer.show"),
        ("plan.__init__", "def f():\n    from stdc_fast.segmenter import Segmenter", "segmenter"),
        ("backends.cpu", "try:\n    import stdc_fast\nexcept ImportError:\n    pass", ""),
        ("backends.cpu", "from stdc_fast import load", ""),
        ("backends.cpu", "class A:\n    def f(self):\n        from stdc_fast import zoo", "zoo"),
        ("backends.cpu", "if True:\n    from stdc_fast import checkpoints", "checkpoints"),
        ("checkpoints.__init__", "from stdc_fast import backends", "backends"),
        ("reference.layers", "from stdc_fast.plan import ops", "plan.ops"),
        ("kernels.conv", "from stdc_fast.errors import UserError", "errors"),
        ("train", "from stdc_fast.cli.options import note", "cli.options"),
        ("backends.cpu", "from stdc_fast import cli", "cli"),
        ("train", "from stdc_fast.viewer import show", "viewer.show"),
    ],
)
def test_what_breaks_a_rule(tree, module, line, target):
    folder = "" if module.startswith("kernels") else "stdc_fast."
    (found,) = broken(tree(**MODULES | {folder + module: line}))
    assert f"stdc_fast.{module}".removesuffix(".__init__") + ":" in found
    assert found.endswith(f" imports {'.'.join(filter(None, ['stdc_fast', target]))}")


def test_what_breaks_none(tree):
    allowed = {
        "stdc_fast.plan.ops": "import torch\nfrom stdc_fast.errors import UserError\nfrom . import *",
        "stdc_fast.backends.cpu": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import stdc_fast",
        "stdc_fast.reference.layers": "from stdc_fast.errors import UserError",
        "stdc_fast.cli.__init__": "from stdc_fast.viewer import show\nfrom stdc_fast.cli import options",
        "stdc_fast.__main__": "from stdc_fast.cli import main",
        "kernels.conv": "from stdc_fast.kernels import common",
        "kernels.common": "import triton",
    }
    imports = tree(**MODULES | allowed)
    assert broken(imports) == []
    assert len(imports) == 7


def test_what_is_a_circle(tree):
    imports = tree(
        **{
            "stdc_fast.a": "from stdc_fast.b import f",
            "stdc_fast.b": "from stdc_fast import c",
            "stdc_fast.c": "import stdc_fast.a",
            "stdc_fast.d": "from stdc_fast import a, e",
            "stdc_fast.e": "def f():\n    from stdc_fast import d",
        }
    )
    at_import = [one for one in imports if not one.inside]
    assert rooms.circles(at_import) == [["stdc_fast.a", "stdc_fast.b", "stdc_fast.c"]]
    assert rooms.circles(imports)[1:] == [["stdc_fast.d", "stdc_fast.e"]]


# What an import does to a process.


def python(code, **environment):
    """What a new process prints that has this source tree on its path."""
    command = [sys.executable, "-c", code]
    environment = {"PATH": "", "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(command, cwd=ROOT.anchor, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_package_does_not_hold_what_lies_beside_it():
    code = (
        "import importlib, stdc_fast\n"
        "for name in ('setup', 'stdc_fast', 'tests', 'bench', 'docs', 'csrc', 'kernel'):\n"
        "    try:\n"
        "        print(importlib.import_module(f'stdc_fast.{name}'))\n"
        "    except ModuleNotFoundError as error:\n"
        "        print(error.name)\n"
    )
    names = ("setup", "stdc_fast", "tests", "bench", "docs", "csrc", "kernel")
    assert python(code) == [f"stdc_fast.{name}" for name in names]


def test_kernels_are_found_without_being_imported():
    code = (
        "import importlib.util, sys, stdc_fast\n"
        "print(importlib.util.find_spec('stdc_fast.kernels').origin)\n"
        "print('triton' in sys.modules, 'stdc_fast.kernels' in sys.modules)\n"
    )
    assert python(code) == [str(ROOT / "kernels" / "__init__.py"), "False False"]


def test_kernels_of_the_tree():
    """Imported, with the source that Triton compiles, and found by the names that they have."""
    pytest.importorskip("triton", reason="Triton is not installed")
    code = (
        "import importlib, inspect\n"
        "from stdc_fast import kernels\n"
        "from stdc_fast.kernels import common, conv\n"
        "print(kernels.__file__, common.__file__, sep='\\n')\n"
        "print('def conv(' in inspect.getsource(conv.fn))\n"
        "print(importlib.import_module(conv.fn.__module__).conv is conv)\n"
    )
    folder = ROOT / "kernels"
    files = [str(folder / name) for name in ("__init__.py", "common.py")]
    assert python(code) == [*files, "True", "True"]


def test_optimisers_are_hooked_once_and_not_before_weights_are_packed():
    """A fused step after the first packing is noticed: by a module's own watch and by ops' cache."""
    code = (
        "import torch, stdc_fast\n"
        "from stdc_fast import nn\n"
        "from stdc_fast.freshness import Cache\n"
        "from torch.optim.optimizer import _global_optimizer_post_hooks as hooks\n"
        "print(len(hooks))\n"
        "def step(weights):\n"
        "    optimizer = torch.optim.SGD(weights, 0.5, fused=True)\n"
        "    for weight in weights: weight.grad = torch.ones_like(weight)\n"
        "    optimizer.step()\n"
    )
    module = (
        "block = nn.ConvBNReLU(4, 8).eval().requires_grad_(False)\n"
        "x = torch.randn(1, 4, 8, 8)\n"
        "before = block(x)\n"
        "print(len(hooks))\n"
        "step([block.conv.weight])\n"
        "print(torch.equal(block(x), before))\n"
    )
    loose = (
        "cache, weight = Cache(), torch.randn(3)\n"
        "before = cache.get('a', [weight], weight.clone)\n"
        "print(len(hooks))\n"
        "step([weight])\n"
        "print(torch.equal(cache.get('a', [weight], weight.clone), before))\n"
    )
    for first, second in ((module, loose), (loose, module)):
        assert python(code + first + second) == ["0", "1", "False", "1", "False"]
