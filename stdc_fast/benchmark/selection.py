"""Which runners are measured, in which dtypes and scopes: options' texts as values, checked before a run."""

from __future__ import annotations

import dataclasses

from stdc_fast.backends import resolve_device
from stdc_fast.benchmark import runners, workloads
from stdc_fast.benchmark.runners import Spec
from stdc_fast.errors import UserError
from stdc_fast.precision import choose


@dataclasses.dataclass(frozen=True)
class Selection:
    """What to measure.

    Attributes:
        device: "cpu" or "cuda:N".
        dtypes: names; the first is what ours is compared in.
        specs: ours, then the peers.
        scopes: names, each once.
    """

    device: str
    dtypes: list[str]
    specs: list[Spec]
    scopes: tuple[str, ...]


def parse(
    *,
    dtype: str = "auto,float32",
    scopes: str = "logits,labels",
    backends: str = "all",
    peers: str = "all",
    int8: bool = False,
    device: str = "auto",
) -> Selection:
    """The options' texts as values. UserError, with what is known, for any that is not."""
    place = resolve_device(device)
    dtypes = []
    for text in _split(dtype, "--dtype"):
        chosen = choose(text, place)[0].name
        if chosen == "float64":
            raise UserError("--dtype float64 is what the reference runs in; use float32, bfloat16 or float16")
        if chosen not in dtypes:
            dtypes.append(chosen)
    names = None if backends == "all" else _split(backends, "--backends")
    specs = runners.ours(place.type, dtypes, names)
    others = runners.peers(place.type, dtypes, int8)
    if peers != "all":
        wanted = [] if peers == "none" else _split(peers, "--peers")
        every = {
            spec.name.lower(): spec.name for spec in runners.peers(place.type, [*dtypes, "float32"], True)
        }
        unknown = [name for name in wanted if name.lower() not in every]
        if unknown:
            raise UserError(
                f"--peers: unknown {unknown[0]!r}; known are all, none, {', '.join(every.values())}"
            )
        asked = {name.lower() for name in wanted}
        others = [spec for spec in others if spec.name.lower() in asked]
    chosen_scopes = tuple(dict.fromkeys(_split(scopes, "--scopes")))
    for scope in chosen_scopes:
        if scope not in workloads.SCOPES:
            raise UserError(f"--scopes: unknown {scope!r}; known are {', '.join(workloads.SCOPES)}")
    place_name = "cpu" if place.type == "cpu" else f"cuda:{place.index or 0}"
    return Selection(place_name, dtypes, specs + others, chosen_scopes)


def _split(text: str, option: str) -> list[str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UserError(f"{option} is empty; name something, or leave it out for the default")
    return parts
