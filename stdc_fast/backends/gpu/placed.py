"""A plan laid out in memory for one request: what GPU backends share, whatever their kernels are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace

import torch
from torch import Tensor

from stdc_fast.backends.gpu.interpolation import cells
from stdc_fast.backends.gpu.model import Device, Prediction, Work, predict_rest
from stdc_fast.backends.gpu.tables import Tiles
from stdc_fast.plan import branch
from stdc_fast.plan.arena import layout, lifetimes
from stdc_fast.plan.ops import Add, Conv, Down, Op, Quantise, Scale, Stem, Upsample, View
from stdc_fast.plan.plan import Plan
from stdc_fast.precision import Precision


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of a plan, which decides all sizes.

    Attributes:
        batch: number of images.
        given: (H, W) of the images.
        seen: (H, W) at which the network sees them; other than ``given`` for raw frames only.
        labels: (H, W) of the labels, or None for logits or a block's map.
        exact: interpolate the logits to ``seen`` before they are to ``labels``.
    """

    batch: int
    given: tuple[int, int]
    seen: tuple[int, int]
    labels: tuple[int, int] | None = None
    exact: bool = True

    def __str__(self) -> str:
        return f"{self.batch}x{self.seen[0]}x{self.seen[1]}"


#: Of a batch: more are beyond the second and third dimension of a grid.
MOST_IMAGES = 65535


class Refused(Exception):
    """Tiles with which an op can not be launched here; ``work`` is None where there is no choice of them."""

    def __init__(self, op: Op, work: Work | None, tiles: Tiles | None, cause: Exception):
        super().__init__(f"{op.name} with tiles {tiles}: {cause}")
        self.work, self.tiles = work, tiles


@dataclasses.dataclass(frozen=True)
class Labelling:
    """What the last op reads and writes where labels are asked for.

    Attributes:
        logits: float32 ``[N, C, h, w]``.
        labels: uint8 ``[N, H, W]``.
        tables: as of :func:`stdc_fast.backends.gpu.interpolation.cells`.
        taps: rows, and columns, of logits that a pixel reads.
        widest: columns of labels in the widest cell between columns of logits.
    """

    logits: Tensor
    labels: Tensor
    tables: dict[str, Tensor]
    taps: int
    widest: int


@dataclasses.dataclass(kw_only=True)
class Launch:
    """One kernel with all of its arguments. A backend adds what starts it, and its model.

    Attributes:
        op: what it computes, and ``also``: ops that it computes on the way.
        work, tiles: of kernels that multiply matrices.
        moved, lanes: of the others the bytes that they move and the operations of all lanes, each a guess.
        waits, early: as of :func:`stdc_fast.backends.gpu.model.predict_rest`.
    """

    op: Op
    also: tuple[Op, ...] = ()
    work: Work | None = None
    tiles: Tiles | None = None
    moved: int = 0
    lanes: float = 0
    waits: int = 2
    early: float = 0

    @property
    def name(self) -> str:
        """Of all ops that it computes."""
        return " + ".join(op.name for op in (*self.also, self.op))

    @property
    def kind(self) -> str:
        return " + ".join(op.kind for op in (*self.also, self.op))

    @property
    def programs(self) -> int:
        """Blocks of threads that are started."""
        raise NotImplementedError

    def predicted(self, device: Device) -> Prediction:
        """Its time in a graph on such a device, by the model."""
        if self.work is None:
            return predict_rest(self.programs, self.moved, self.lanes, device, self.waits, self.early)
        return self._predicted(device)

    def _predicted(self, device: Device) -> Prediction:
        """Of a kernel that multiplies matrices."""
        raise NotImplementedError


class Lowered:
    """A plan for one :class:`Request`: its memory, and what runs it once.

    A backend calls :meth:`_lower` when it is set up, and implements :meth:`launch` and, each to prepare the
    launch of an op, ``_stem(op)``, ``_conv(op)``, ``_down(op)``, ``_gate(op)``, ``_map(op, scale, add)`` of a
    Scale, an Add or a Quantise, and ``_upsample(op, labelling)``. They are called in the plan's order.

    Args:
        packed: the weights by op, tensors and lists of them.
        choose: the tiles of a :class:`Work`, with a ``height`` and a ``width`` in pixels.
        products: dtype of products in :class:`Work` but for those of levels: that of maps, or "tf32".
        apart: each buffer has an allocation of its own, so that a sanitizer sees who reaches beyond one.
        branches: memory is such that the ops of :attr:`branch` may run beside others.

    Attributes:
        branch: ops that may run beside others, or None.
        arena: bytes of all maps between; none where they are apart.
        buffers: ``[N, H, W, C]`` by name, but for the labels'.
        inputs: those to fill: frames ``[N, H, W, 3]``, images and maps ``[N, H, W, C]``, by name.
        result: labels ``[N, H, W]``, logits ``[N, C, h, w]`` or a block's map ``[N, H, W, C]``.
        direct: whether the next graph of it may be given other places of its frame and labels.
        nodes: of a captured graph those that read the frame and write the labels, where they may be changed:
            each its handle and the bytes of its argument.
    """

    def __init__(
        self,
        plan: Plan,
        packed: Mapping[str, SimpleNamespace],
        request: Request,
        precision: Precision,
        device: torch.device,
        choose: Callable[[Work], Tiles],
        products: str | None = None,
        apart: bool = False,
        branches: bool = False,
    ):
        self.plan, self.packed, self.request = plan, packed, request
        self.precision, self.device, self.choose = precision, device, choose
        self.products = products or str(precision.maps).removeprefix("torch.")
        self.branch = branch.find(plan) if branches else None
        lives = branch.beside(plan, self.branch) if self.branch else lifetimes(plan)
        self._prolong(lives)
        arena = layout(plan, request.batch, *request.seen, precision.maps.itemsize, lives=lives)
        self.arena = torch.empty(0 if apart else arena.size, dtype=torch.uint8, device=device)
        self.buffers: dict[str, Tensor] = {}
        for name in plan.buffers:
            if name in arena.spans and not apart:
                taken = self.arena[arena.spans[name]]
                taken = taken[: arena.shapes[name].numel() * self._dtype(name).itemsize]
                self.buffers[name] = taken.view(self._dtype(name)).view(arena.shapes[name])
            elif name in plan.inputs:
                self.buffers[name] = self._empty(name, *request.given)
            elif plan.buffers[name].store != "uint8":  # labels have a size of their own
                self.buffers[name] = self._empty(name, *plan.size(name, *request.seen))
        self.inputs = {name: self.buffers[name] for name in plan.inputs}
        if request.batch > MOST_IMAGES:
            raise ValueError(f"{request.batch} images at once; use batches of at most {MOST_IMAGES}")
        for name, x in self.buffers.items():
            # NOTE: offsets within an image are 32 bits; a tile may reach some rows beyond its end.
            if x[:1].numel() + 64 * x[0, :1].numel() >= 1 << 31:
                raise ValueError(f"{name} is too large for the kernels: {list(x.shape)}; use smaller images")
        self._averages: dict[str, Tensor] = {}
        self._beside: list[Tensor] = []
        self._tables: dict[str, Tensor] = {}
        self._none = torch.empty(0, dtype=torch.float32, device=device)
        self.direct = False
        self.nodes: list[tuple[int, int]] = []
        #: Buffers of logits, ``[N, C, h, w]`` in memory.
        self._planar: set[str] = set()
        ends = {op.output.buffer: op.input for op in plan.ops if isinstance(op, Upsample)}
        output = ends.get(plan.outputs[0].buffer, plan.outputs[0])
        if plan.buffers[output.buffer].store == "float32":
            self._planar = {output.buffer}
            n, height, width, channels = self.buffers[output.buffer].shape
            self.result = self.buffers[output.buffer].view(n, channels, height, width)
        else:
            self.result = self._view(output)

    # What a backend implements, besides its ops.

    def launch(self, first: bool = False, side: torch.cuda.Stream | None = None) -> None:
        """Start all kernels on the current stream, in the plan's order; on a CPU, run them.

        Args:
            first: these have not been launched before, so there may be something to compile.
            side: another stream that may be used too, for the branch; the current one waits for it.

        Raises :class:`Refused` for tiles that do not fit.
        """
        raise NotImplementedError

    def _prolong(self, lives: dict[str, tuple[int, int]]) -> None:
        """Lengthen the lifetimes of buffers that are used by other ops than the plan says."""

    # What the executable asks for.

    def tensors(self) -> Iterator[Tensor]:
        """All memory that the launches use, weights too."""
        yield self.arena
        yield from self.buffers.values()
        yield self.result
        yield from self._averages.values()
        yield from self._beside
        yield from self.pinned()
        yield from weights(self.packed)

    def pinned(self) -> list[Tensor]:
        """Memory that others use too, so that it is none of a graph's in whose capture this was made."""
        return list(self._tables.values())

    def poison(self) -> None:
        """Fill all maps, but not the inputs, with bytes that are NaN in every dtype."""
        if self.request.labels is not None:
            self.result.fill_(0xFF)
        for name, x in {None: self.arena, **self.buffers}.items():
            if name not in self.inputs:
                x.view(torch.uint8).fill_(0xFF)

    # Memory.

    def _dtype(self, buffer: str) -> torch.dtype:
        stores = {
            "act": self.precision.maps, "float32": self.precision.sums, "uint8": torch.uint8,
            "u8": torch.uint8, "s8": torch.int8,
        }  # fmt: skip
        return stores[self.plan.buffers[buffer].store]

    def _empty(self, buffer: str, height: int, width: int) -> Tensor:
        shape = (self.request.batch, height, width, self.plan.buffers[buffer].channels)
        return torch.empty(shape, dtype=self._dtype(buffer), device=self.device)

    def _view(self, view: View) -> Tensor:
        return self.buffers[view.buffer][..., view.offset : view.offset + view.channels]

    def _extra(self, *shape: int, dtype: torch.dtype = torch.float32, zero: bool = False) -> Tensor:
        """Memory of a launch besides the plan's buffers; it stays as long as these."""
        make = torch.zeros if zero else torch.empty
        self._beside.append(make(shape, dtype=dtype, device=self.device))
        return self._beside[-1]

    # What launches are made of.

    def _lower(self) -> None:
        """Call what prepares the launch of each op; none to labels where they are not asked for."""
        rows: dict[str, int] = {}
        for op in self.plan.ops:
            if isinstance(op, Conv) and op.mean:
                rows[op.mean.buffer] = max(self._tiles_of_image(op), rows.get(op.mean.buffer, 0))
        for name, most in rows.items():  # rows that an op does not write stay zero
            shape = self.request.batch, most, self.plan.buffers[name].channels
            self._averages[name] = torch.zeros(shape, dtype=torch.float32, device=self.device)
        for op in self.plan.ops:
            if not isinstance(op, Upsample):
                getattr(self, f"_{op.kind}")(op)
            elif self.request.labels is not None:
                self._upsample(op, self._labelling())

    def _scale(self, op: Scale) -> None:
        self._map(op, op.scale, None)

    def _add(self, op: Add) -> None:
        self._map(op, None, op.other)

    def _quantise(self, op: Quantise) -> None:
        self._map(op, op.scale, op.add)

    def _work(self, op: Stem | Conv | Down) -> Work:
        """What decides on the tiles of an op."""
        if isinstance(op, Conv):
            kernel, stride = op.kernel, op.stride
            inputs = tuple(view.channels for view in op.inputs)
            covered = op.inputs[0] if kernel == 2 else op.output
            changed = op.scale is not None or op.add is not None
            mapped = op.add is not None and bool(self.plan.buffers[op.add.buffer].stride)
        else:
            kernel, stride = 3 if isinstance(op, Stem) else 1, 2
            inputs, covered, changed, mapped = (op.input.channels,), op.output, False, False
        height, width = self.plan.size(covered.buffer, *self.request.seen)
        return Work(
            op.kind, kernel, stride, inputs, op.output.channels, self.request.batch, height, width,
            "int8" if getattr(op, "multipliers", None) else self.products, changed, mapped,
            op.levels is not None,
        )  # fmt: skip

    def _tiles_of_image(self, op: Conv) -> int:
        """Number of tiles of one image, of all sets of the sub-pixel form."""
        t = self.choose(self._work(op))
        height, width = self.plan.size(op.output.buffer, *self.request.seen)
        sets = 1
        if op.kernel == 2:
            sets = (2 + height % 2) * (2 + width % 2)
            height, width = self.plan.size(op.inputs[0].buffer, *self.request.seen)
        return sets * -(-height // t.height) * -(-width // t.width)

    def _sums(self, view: View | None) -> tuple[Tensor, int, int]:
        """(tensor, rows, pitch) of an average: float32 ``[N, rows, C]`` from the view's first channel on.

        The rows add up to it; each tile of an image has its own, and others are zero.
        """
        if view is None:
            return self._none, 0, 0
        sums = self._averages[view.buffer]
        return sums[..., view.offset :], *sums.shape[1:]

    def _vector(self, view: View) -> tuple[Tensor, int, int]:
        """(tensor, rows, pitch) of a vector: an average, or one row."""
        if view.buffer in self._averages:
            return self._sums(view)
        return self._view(view), 1, self.plan.buffers[view.buffer].channels

    def _vector_or_map(self, view: View | None) -> tuple[Tensor, str, int]:
        """(tensor, kind, pitch) of what a prologue adds."""
        if view is None:
            return self._none, "none", 0
        kind = "map" if self.plan.buffers[view.buffer].stride else "vector"
        return self._view(view), kind, self.plan.buffers[view.buffer].channels

    def _pixel_scales(self) -> tuple[float, float]:
        """Vertical and horizontal: places of the given image from one that is seen to the next."""
        r = self.request
        down, right = ((a - 1) / (b - 1) if b > 1 else 0.0 for a, b in zip(r.given, r.seen, strict=True))
        return down, right

    def _labelling(self) -> Labelling:
        """Makes labels the result."""
        r, logits = self.request, self.result
        between = r.seen if r.exact and r.labels != r.seen else None
        self._tables, widest = cells(tuple(logits.shape[2:]), r.labels, between, self.device)
        self.result = torch.empty((r.batch, *r.labels), dtype=torch.uint8, device=self.device)
        return Labelling(logits, self.result, self._tables, 3 if between else 2, widest)


def weights(packed: Mapping[str, SimpleNamespace]) -> Iterator[Tensor]:
    """All tensors of packed weights."""
    for found in packed.values():
        for value in vars(found).values():
            yield from (w for w in (value if isinstance(value, list) else [value]) if isinstance(w, Tensor))
