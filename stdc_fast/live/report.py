"""What :func:`stdc_fast.accelerate` did with a model, as data and as a table."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of a model.

    Attributes:
        name: of the module in the model; "" is the model itself.
        kind: what it was taken for: "network", or an op of ``torch.ops.stdc_fast``.
        fast: whether it runs on a packed plan.
        why: the reason, in words.
        error: relative error of its output on the probe, in float64; None where it was not compared.
    """

    name: str
    kind: str
    fast: bool
    why: str
    error: float | None = None


@dataclasses.dataclass(frozen=True)
class AccelerateReport:
    """What runs fast in a model, what does not, and why.

    Attributes:
        model: name of the model's class.
        family: whose names its tensors have.
        how: "whole", one plan from image to logits, or "blocks".
        backend, dtype: what runs, and what it computes in; of blocks the dtype of their weights.
        error: relative error of its main output on the probe in that dtype; the model's own is ``own_error``.
        parts: the network first, then blocks in the order of the model.
    """

    model: str
    family: str
    how: str
    backend: str
    dtype: str
    error: float
    own_error: float
    parts: tuple[Part, ...]

    @property
    def fast(self) -> tuple[str, ...]:
        """Names of the parts that run on packed plans."""
        return tuple(part.name for part in self.parts if part.fast)

    def __str__(self) -> str:
        head = (
            f"{self.model} ({self.family}): {self.how}, {self.backend}, {self.dtype}, relative error "
            f"{self.error:.1e} (its own: {self.own_error:.1e})"
        )
        rows = [
            (
                part.name or "(the model)",
                part.kind,
                "fast" if part.fast else "own",
                "" if part.error is None else f"{part.error:.1e}",
                part.why,
            )
            for part in self.parts
        ]
        rows.insert(0, ("part", "kind", "runs", "error", "why"))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = [
            "  ".join((*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[4])) for row in rows
        ]
        return "\n".join((head, *(line.rstrip() for line in lines)))
