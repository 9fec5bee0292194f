"""From a live model to the plan of its network: by names and shapes, then by what it computes."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from stdc_fast import backends, checkpoints
from stdc_fast.checkpoints.families import FAMILIES, recognise
from stdc_fast.errors import UserError
from stdc_fast.live import probe
from stdc_fast.live.entries import Entry, Shown, entry_of, main_output
from stdc_fast.numerics import tolerance
from stdc_fast.plan import Plan, build, optimise
from stdc_fast.precision import FLOAT64, Precision
from stdc_fast.reference.layers import STDCModule

_CLASSIFIERS = (
    "conv_out.conv_out.weight",
    "decode_head.conv_seg.weight",
    "segmentation_head.0.seg_head.2.weight",
)


@dataclasses.dataclass(frozen=True)
class Match:
    """How a model's state dict becomes a plan that computes the same.

    Attributes:
        family: whose names its tensors have.
        options: for :func:`stdc_fast.checkpoints.from_state`.
        eps: of each norm, by its canonical name.
        count_include_pad: of its average pools.
        shown: how the model shows the logits.
        multiple: of which height and width must be multiples, because the model itself refuses others.
        sizes: the only sizes that it is known to take; None for all.
        error: relative error of the main output on the probe, in float64.
    """

    family: str
    options: dict[str, object]
    eps: dict[str, float]
    count_include_pad: bool
    shown: Shown
    multiple: int = 1
    sizes: tuple[tuple[int, int], ...] | None = None
    error: float = 0.0

    def plan(self, state: dict[str, Tensor]) -> Plan:
        """Of these weights. UserError for those that are no network's any more."""
        network = checkpoints.from_state(state, **self.options).network(torch.float64)
        for name, module in network.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = self.eps.get(name, module.eps)
            elif isinstance(module, STDCModule) and module.stride == 2:
                module.skip.count_include_pad = self.count_include_pad
        return optimise(build(network, frames=False))


def canonical(state: dict[str, Tensor]) -> dict[str, str]:
    """Names of the model's tensors by those that the reference has, as far as there are such."""
    family = recognise(state)
    renamed = family.rename(state)
    names = {id(tensor): name for name, tensor in reversed(state.items())}
    return {ours: names[id(tensor)] for ours, tensor in renamed.items() if id(tensor) in names}


def eps_by_name(model: nn.Module, names: dict[str, str]) -> dict[str, float]:
    """eps of each norm, by the canonical name of its module."""
    modules = dict(model.named_modules(remove_duplicate=False))
    found = {}
    for ours, theirs in names.items():
        if ours.endswith(".running_var"):
            eps = getattr(modules[theirs.rpartition(".")[0]], "eps", None)
            if isinstance(eps, float):
                found[ours.removesuffix(".running_var")] = eps
    return found


def includes_padding(model: nn.Module) -> bool:
    return all(m.count_include_pad for m in model.modules() if isinstance(m, nn.AvgPool2d) and m.padding)


def _candidates(state: dict[str, Tensor]) -> Iterator[dict[str, object]]:
    """Options that the tensors leave open, each combination of them; the last UserError if there is none."""
    lone = next((len(state[k]) == 1 for k in _CLASSIFIERS if k in state and state[k].ndim == 4), False)
    fixed, failure, any_one = ({"threshold": 0.5} if lone else {}), None, False
    for norm, last in itertools.product((None, "in-place", "plain"), (None, False, True)):
        options = dict(fixed)
        options |= {"batch_norm": norm} if norm else {}
        options |= {} if last is None else {"conv_last": last}
        try:
            checkpoints.from_state(state, **options)
        except UserError as error:
            failure = failure or error
            if not any(f"say {name}=" in str(error) for name in ("batch_norm", "conv_last")):
                break  # no option mends that
            continue
        any_one = True
        yield options
        if options == fixed:
            return  # nothing is left open
    if not any_one:
        raise failure


def match(
    model: nn.Module, twin: nn.Module, images: list[Tensor], main_only: bool, fixed_sizes: bool = False
) -> Match:
    """The match of a model whose copy in float64 is ``twin``.

    With ``fixed_sizes`` only the sizes of ``images`` are taken for granted. Raises UserError where the names
    are not those of one network, or where no reading of them computes what the model does, with the largest
    difference.
    """
    entry = entry_of(model)
    state = twin.state_dict()
    family = recognise(state).name
    readings = list(_candidates(state))
    outputs, multiple = _own_outputs(entry, twin, images, fixed_sizes)
    _, shown = entry.shows(next(iter(outputs.values())))
    if shown.others is not None and not main_only:
        raise UserError(
            f"returns {shown.others + 1} outputs, of which one plan gives the first; "
            'outputs="main" gives that one, and None for the others'
        )
    names = canonical(state)
    eps, padding = eps_by_name(twin, names), includes_padding(twin)
    worst = ""
    for options, corners in itertools.product(readings, (True, False)):
        lone = "threshold" in options
        tried = dataclasses.replace(shown, align_corners=corners, lone=lone)
        found = Match(family, options, eps, padding, tried, multiple)
        problem, error = _compare(entry, found, state, images, outputs)
        if not problem:
            sizes = tuple({tuple(images[i].shape[2:]) for i in outputs}) if fixed_sizes else None
            return dataclasses.replace(found, error=error, sizes=sizes)
        worst = worst or problem
        if not shown.full:
            break
    raise UserError(f"has the names of {family}, but computes something else: {worst}")


def _own_outputs(
    entry: Entry, twin: nn.Module, images: list[Tensor], fixed_sizes: bool
) -> tuple[dict[int, object], int]:
    """The copy's own outputs by number of the probe, and 32 where it takes multiples of that only."""
    outputs, failure, multiple = {}, "", 1
    for i, image in enumerate(images):
        try:
            with torch.no_grad():
                outputs[i] = entry.run(twin, image)
                again = entry.run(twin, image) if i == 0 else outputs[i]
        except Exception as error:  # of the model's own code
            failure = failure or f"{type(error).__name__}: {error!s}".partition("\n")[0][:200]
            if any(n % 32 for n in image.shape[2:]):
                multiple = 32
            continue
        main, _ = entry.shows(outputs[i])
        if main is None:
            raise UserError(
                f"returns a {type(outputs[i]).__name__}, not logits or a tuple that begins with them"
            )
        if not torch.equal(main, entry.shows(again)[0]):
            raise UserError("computes something else each time, although it is in eval mode")
    if not outputs:
        size = "x".join(map(str, images[0].shape[2:]))
        raise UserError(f"fails on a probe of {size}: {failure}; give an image that it takes as probe=")
    return outputs, multiple


def _compare(
    entry: Entry, found: Match, state: dict, images: list[Tensor], outputs: dict[int, object]
) -> tuple[str, float]:
    device = images[0].device
    executable = backends.compile(found.plan(state), FLOAT64, device, "eager")
    worst, limit = 0.0, tolerance("float64").logits
    for i, output in outputs.items():
        got = main_output(executable.logits(images[i]), images[i], found.shown)
        error, problem = probe.difference("output 0", got, entry.shows(output)[0], limit)
        worst = max(worst, error)
        if problem:
            return problem, error
    return "", worst


def check_precision(
    model: nn.Module,
    twin: nn.Module,
    found: Match,
    images: list[Tensor],
    executable: backends.Executable,
    precision: Precision,
    dtype: torch.dtype,
) -> tuple[float, float]:
    """(error of what will run, error of the model in that dtype), both to float64; else UserError.

    ``dtype`` is that of the images.
    """
    entry, errors, owns, low = entry_of(model), [0.0], [0.0], copy.deepcopy(twin).to(precision.maps)
    taken = [x for x in images if not any(n % found.multiple for n in x.shape[2:])]
    with torch.no_grad():
        exact = [[getattr(twin, name)(*args) for name, args in entry.trials(twin, x)] for x in taken]
        for x, expected in zip(taken, exact, strict=True):
            image = x.to(dtype)
            logits = executable.logits(image)
            for (name, args), output in zip(entry.trials(twin, x), expected, strict=True):
                args = tuple(image if a is x else a for a in args)
                got, _ = entry.shows(entry.present(model, name, args, {}, logits, found.shown))
                wanted, _ = entry.shows(output)
                plain = _plain_error(low, name, entry.trials(low, x.to(precision.maps)), wanted, entry)
                limit = probe.limit_of(precision.maps, plain)
                error, problem = probe.difference(f"{name}: output 0", got, wanted, limit)
                if problem:
                    raise UserError(f"{problem}, in {precision}, which allows {limit:.1e}")
                errors.append(error)
                owns.append(plain)
    return max(errors), max(owns)


def _plain_error(low: nn.Module, name: str, trials: list, wanted: Tensor, entry: Entry) -> float:
    """Of the model's own method in a low precision; NaN where that has no such operation."""
    try:
        got, _ = entry.shows(getattr(low, name)(*dict(trials)[name]))
    except (RuntimeError, TypeError):
        return float("nan")
    return probe.relative_error(got, wanted)


def known() -> str:
    return ", ".join(family.name for family in FAMILIES if family.name != "paddle")
