"""The command line: ``stdc-fast predict | val | train | convert | export | tune | info | benchmark``.

Exit codes: 0 done; 1 a damaged video was labelled as far as it goes; 2 something the user can mend (said in
one line on stderr); 130 interrupted.
Results go to stdout, progress and messages to stderr.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from stdc_fast.cli.benchmark import benchmark
from stdc_fast.cli.export import export
from stdc_fast.errors import UserError
from stdc_fast.tune import tune

app = typer.Typer(
    name="stdc-fast",
    help="STDC-Seg real-time semantic segmentation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# typer reads these at run time, and on Python 3.10 it needs Optional rather than "X | None".
Model = Annotated[str, typer.Option("--model", "-m", help="Embedded name or checkpoint file.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, float64, float16 or bfloat16.")]
Backend = Annotated[str, typer.Option(help="auto or one that `stdc-fast info` lists.")]
Scale = Annotated[Optional[float], typer.Option(help="Resize the image by this factor for the network.")]
Size = Annotated[
    Optional[str], typer.Option(help="HEIGHTxWIDTH for the network, or native. Default: the weights' own.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]


def _version(show: bool) -> None:
    if show:
        import stdc_fast

        print(f"stdc-fast {stdc_fast.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def predict(
    sources: Annotated[
        list[str], typer.Argument(metavar="SRC...", help="Images, folders, globs, videos, cameras (0).")
    ],
    model: Model = "stdc1_camvid",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path("out"),
    scale: Scale = None,
    size: Size = None,
    alpha: Annotated[float, typer.Option(help="Weight of the colours in the overlay, 0 to 1.")] = 0.55,
    legend: Annotated[
        Optional[bool], typer.Option(help="Name the classes below the overlay. Default: of images only.")
    ] = None,
    overlay: Annotated[bool, typer.Option(help="Write NAME_overlay.png, of videos .mp4.")] = True,
    labels: Annotated[
        Optional[bool],
        typer.Option(help="Write NAME_labels.png of images, pixels are class ids."),
    ] = None,
    max_frames: Annotated[
        Optional[int], typer.Option(min=1, help="Of each video or camera, only the first N frames.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    backend: Backend = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Label images: overlay PNG with a legend, and label PNG, for each. Of videos and cameras: overlay video.

    A bad image does not stop the others; failures are listed at the end, with exit code 2. A damaged video is
    labelled as far as it goes; exit code 1. A camera (0, or /dev/video0) is labelled until Ctrl-C.

    Examples: stdc-fast predict street.jpg photos/ --out out; stdc-fast predict drive.mp4 --legend
    """
    import stdc_fast
    from stdc_fast import images, video
    from stdc_fast.record import output_names, print_result, record
    from stdc_fast.segmentation import save_image
    from stdc_fast.segmenter import check_request

    if not 0 <= alpha <= 1:
        raise UserError(f"--alpha must lie between 0 and 1, not {alpha}")
    network_size = _parse_size(size)
    check_request(scale, network_size)
    files, failures = [], []
    for source in sources:
        try:
            files.extend(images.expand(source)[0])
        except UserError as error:
            failures.append((source, str(error)))
    videos = {file for file in files if video.is_video(file)}
    if max_frames is not None and files and not videos:
        raise UserError("--max-frames is about videos and cameras, and there is none; leave it out")
    if labels and videos:
        raise UserError(f"{min(videos)}: labels of videos are not written; leave out --labels, or use "
                        "predict(..., stream=True) in Python")  # fmt: skip
    segmenter = stdc_fast.load(model, device=device, dtype=dtype, backend=backend)
    _note(segmenter.report, quiet)
    results = []
    names = output_names(files)
    inputs = {os.path.realpath(f) for f in files}
    kinds = [kind for kind, wanted in (("overlay", overlay), ("labels", labels is not False)) if wanted]
    for path, name in _progress(list(zip(files, names, strict=True)), "predict", quiet, len(files) > 1):
        try:
            if path in videos:
                targets = {"overlay": out / f"{name}_overlay.mp4"} if overlay else {}
            else:
                targets = {kind: out / f"{name}_{kind}.png" for kind in kinds}
            for kind, target in targets.items():
                if os.path.realpath(target) in inputs:
                    raise UserError(
                        f"{path}: its {kind} would overwrite {target}, an input; choose another --out"
                    )
            if path in videos:
                row = record(segmenter, path, targets.get("overlay"), scale=scale, size=network_size,
                             alpha=alpha, legend=bool(legend), max_frames=max_frames,
                             progress=not quiet)  # fmt: skip
            else:
                result = segmenter.predict(path, scale=scale, size=network_size)
                row = result.to_dict() | {kind: str(target) for kind, target in targets.items()}
                if "overlay" in targets:
                    save_image(result.overlay(alpha, legend is not False), targets["overlay"])
                if "labels" in targets:
                    result.save(targets["labels"])
        except UserError as error:
            failures.append((str(path), str(error)))
            continue
        results.append(row)
        if not as_json and (len(files) == 1 or path in videos):
            print_result(row, segmenter.name)
    if as_json:
        print(json.dumps({"model": segmenter.name, "results": results,
                          "failures": [{"name": n, "error": e} for n, e in failures]}, indent=1))  # fmt: skip
    elif len(files) > 1:
        seconds = sum(r["seconds"] for r in results)
        print(f"{len(results)} {'files' if videos else 'images'} labelled in {out} ({seconds:.2f} s)")
    partial = [row["error"] for row in results if "error" in row]
    for message in partial + [message for _, message in failures]:
        print(f"stdc-fast: {message}", file=sys.stderr)
    if failures:
        if len(failures) + len(results) > 1:
            total = len(failures) + len(results)
            print(f"stdc-fast: {len(failures)} of {total} failed", file=sys.stderr)
        raise typer.Exit(2)
    if partial:
        raise typer.Exit(1)


@app.command()
def val(
    data: Annotated[Path, typer.Argument(help="CamVid or Cityscapes folder.")],
    model: Model = "stdc1_camvid",
    split: Annotated[str, typer.Option(help="Which split to take.")] = "val",
    scale: Scale = None,
    size: Size = None,
    limit: Annotated[Optional[int], typer.Option(min=1, help="Only the first N images.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    backend: Backend = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Intersection over union per class and its mean, at the labels' full size."""
    import stdc_fast
    from stdc_fast.data import open_folder
    from stdc_fast.evaluate import evaluate

    network_size = _parse_size(size)
    folder = open_folder(data, split)
    segmenter = stdc_fast.load(model, device=device, dtype=dtype, backend=backend)
    _note(segmenter.report, quiet)
    count = min(limit or len(folder), len(folder))
    indices = _progress(range(count), "val", quiet)
    confusion = evaluate(segmenter, folder, scale=scale, size=network_size, indices=indices)
    iou = dict(zip(folder.classes.names, confusion.iou().tolist(), strict=True))
    if as_json:
        print(json.dumps({
            "model": segmenter.name, "data": str(data), "split": split, "images": count,
            "scale": scale, "size": network_size,
            "default_short_side": segmenter.input_size.short_side,
            "backend": segmenter.backend, "dtype": str(segmenter.dtype).removeprefix("torch."),
            "miou": _finite(confusion.miou()), "pixel_accuracy": _finite(confusion.pixel_accuracy()),
            "iou": {k: _finite(v) for k, v in iou.items()},
            "confusion": confusion.matrix.tolist(),
        }, indent=1))  # fmt: skip
        return
    print(f"{segmenter.name} on {data} {split}, {count} images")
    for name, value in iou.items():
        print(f"  {name:<16} {'  absent' if value != value else f'{value:8.2%}'}")
    print(f"  {'mean IoU':<16} {confusion.miou():8.2%}")
    print(f"  {'pixel accuracy':<16} {confusion.pixel_accuracy():8.2%}")


@app.command()
def train(
    data: Annotated[Path, typer.Argument(help="CamVid or Cityscapes folder with train and val.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")],
    variant: Annotated[str, typer.Option(help="stdc1 or stdc2.")] = "stdc1",
    iterations: Annotated[int, typer.Option(help="Length of the schedule.")] = 60000,
    batch: Annotated[int, typer.Option(help="Crops per step and process.")] = 12,
    crop: Annotated[str, typer.Option(help="HEIGHTxWIDTH of a crop, multiples of 32.")] = "512x1024",
    crop_start: Annotated[
        Optional[str], typer.Option(help="Crop size at the start; it grows in steps of 32.")
    ] = None,
    scales: Annotated[str, typer.Option(help="Range of the random scale: LOW,HIGH.")] = "0.5,2.0",
    aspect: Annotated[float, typer.Option(help="Largest random stretch of the width.")] = 0.0,
    jitter: Annotated[float, typer.Option(help="Largest change of brightness, contrast, colour.")] = 0.5,
    balance: Annotated[float, typer.Option(help="Share of crops placed on a random class.")] = 0.0,
    optimizer: Annotated[str, typer.Option(help="sgd or adamw.")] = "sgd",
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 0.01,
    weight_decay: Annotated[float, typer.Option(help="Of convolution weights.")] = 5e-4,
    warmup: Annotated[int, typer.Option(help="Iterations of linear warm-up.")] = 1000,
    class_weights: Annotated[
        float, typer.Option(help="W > 1 weights classes by 1 / log(W + share); 0 is off.")
    ] = 0.0,
    aux_weight: Annotated[float, typer.Option(help="Weight of each auxiliary head.")] = 1.0,
    detail_weight: Annotated[float, typer.Option(help="Weight of the detail loss.")] = 1.0,
    jaccard_weight: Annotated[float, typer.Option(help="Weight of a soft IoU loss.")] = 0.0,
    jaccard_from: Annotated[int, typer.Option(help="Iteration at which the soft IoU loss joins.")] = 0,
    loss_stride: Annotated[int, typer.Option(help="Compare every N-th row and column only.")] = 1,
    ema: Annotated[float, typer.Option(help="Decay of the averaged weights; 0 is off.")] = 0.999,
    eval_scale: Annotated[float, typer.Option(help="Scale of the image in validation.")] = 1.0,
    val_every: Annotated[int, typer.Option(help="Iterations between validations.")] = 1000,
    save_every: Annotated[int, typer.Option(help="Iterations between checkpoints.")] = 200,
    amp: Annotated[str, typer.Option(help="auto, bf16, fp16 or off.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of all randomness.")] = 0,
    backbone: Annotated[Optional[Path], typer.Option(help="Checkpoint to start the backbone from.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in OUT.")] = False,
    device: Device = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Processes that augment.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Train STDC-Seg. Kill it at any time; --resume goes on with the same schedule.

    Several GPUs: torchrun --nproc-per-node 4 -m stdc_fast train DATA --out RUN
    """
    arguments = dict(locals())
    from stdc_fast import train as training

    low, _, high = scales.partition(",")
    try:
        arguments["scales"] = (float(low), float(high))
    except ValueError:
        raise UserError(f"--scales must be LOW,HIGH, for example 0.5,2.0, not {scales!r}") from None
    arguments["crop"] = _parse_size(crop, "--crop")
    arguments["crop_start"] = _parse_size(crop_start, "--crop-start")
    names = {f.name for f in dataclasses.fields(training.TrainConfig)}
    config = training.TrainConfig(**{k: v for k, v in arguments.items() if k in names})
    best = training.train(
        config, data, out, resume=resume, backbone=backbone, device=device, workers=workers, quiet=quiet
    )
    if os.environ.get("RANK", "0") == "0":
        print(f"best validation mIoU {best:.2%}: {out / 'best.safetensors'}")


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Checkpoint of any known family.")],
    target: Annotated[Path, typer.Argument(help="Our safetensors file to write.")],
    half: Annotated[bool, typer.Option("--half", help="Store convolutions as fp16.")] = False,
    meta: Annotated[
        Optional[list[str]],
        typer.Option(help='KEY=VALUE to add or replace in its metadata, e.g. terms="...".'),
    ] = None,
) -> None:
    """Convert a checkpoint of any known family to our safetensors."""
    from stdc_fast import checkpoints

    checkpoint = checkpoints.read(source)
    metadata = {
        "variant": checkpoint.variant,
        "family": checkpoint.family,
        **checkpoint.metadata,
    }
    for item in meta or []:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise UserError(f"--meta must be KEY=VALUE, not {item!r}")
        try:
            metadata[key] = json.loads(value)
        except json.JSONDecodeError:
            metadata[key] = value
    checkpoints.check_metadata(metadata, checkpoint.state)
    checkpoints.save(checkpoint.state, target, metadata, half)
    print(f"{checkpoint.report}\n{target}: {target.stat().st_size / 1e6:.1f} MB")


@app.command()
def info(
    as_json: Json = False,
    plan: Annotated[
        Optional[str],
        typer.Option(metavar="MODEL", help="Show how this embedded name or checkpoint file is computed."),
    ] = None,
    size: Annotated[
        Optional[str], typer.Option(help="With --plan: HEIGHTxWIDTH of the input. Default: 512x1024.")
    ] = None,
    batch: Annotated[
        Optional[int], typer.Option(min=1, max=1024, help="With --plan: images at a time. Default: 1.")
    ] = None,
    dtype: Annotated[
        Optional[str], typer.Option(help="With --plan: float32, bfloat16 or float16. Default: float32.")
    ] = None,
    written: Annotated[
        bool, typer.Option("--written", help="With --plan: the network as written, before all rewrites.")
    ] = False,
    draw: Annotated[
        Optional[Path], typer.Option(help="With --plan: write a figure, .svg or .png.", metavar="FILE")
    ] = None,
) -> None:
    """Versions, processor, GPUs, backends (and why each is or is not available), models.

    With --plan what a network computes, op by op: shapes, multiply-adds, bytes moved, memory.

    Example: stdc-fast info --plan stdc1_camvid --size 720x960 --draw plan.svg
    """
    if plan is not None:
        _print_plan(plan, size, batch or 1, dtype, written, draw, as_json)
        return
    given = {"size": size, "batch": batch, "dtype": dtype, "written": written or None, "draw": draw}
    for option in (name for name, value in given.items() if value is not None):
        raise UserError(f"--{option} is about a plan; add --plan MODEL, for example --plan stdc1_camvid")
    from stdc_fast import info as facts

    found = facts.collect()
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for name, version in found["versions"].items():
        print(f"{name:<12} {version or 'not installed'}")
    cpu = found["cpu"]
    print(f"{'cpu':<12} {cpu['model']}, {cpu['cores']} cores, {cpu['threads']} threads")
    print(f"{'':<12} {' '.join(cpu['features']) or 'no vector extensions known to matter'}")
    for gpu in found["gpus"]:
        print(f"{'gpu':<12} {gpu['name']}, compute {gpu['capability']}, {gpu['memory_gib']} GiB")
    if not found["gpus"]:
        print(f"{'gpu':<12} none that torch sees")
    native = found["native"]
    print(f"{'native':<12} {'module' if native['available'] else 'none:'} {native['reason']}")
    for name, reason in native["build"].get("skipped", {}).items():
        print(f"{'':<12} without {name}: {reason}")
    for status in found["backends"]:
        mark = "yes" if status["available"] else "no"
        chosen = " (default)" if status["name"] == found["default_backend"] else ""
        print(f"{'backend':<12} {status['name']:<7} {mark:<3} {status['reason']}{chosen}")
    if found["default_backend"].startswith("none"):
        print(f"{'backend':<12} default {found['default_backend']}")
    dtype = found["default_dtype"]
    print(f"{'dtype':<12} {dtype['name']} (default): {dtype['reason']}")
    for model in found["models"]:
        score = f"mIoU {model['miou']:.2%} ({model['miou_split']})" if model["miou"] else ""
        print(f"{'model':<12} {model['name']}: {model['variant']}, {score}")


def _print_plan(
    model: str,
    size: str | None,
    batch: int,
    dtype: str | None,
    written: bool,
    figure: Path | None,
    as_json: bool,
) -> None:
    from stdc_fast import checkpoints, zoo
    from stdc_fast.plan import build, optimise
    from stdc_fast.viewer import show

    size, dtype = "512x1024" if size is None else size, "float32" if dtype is None else dtype
    itemsizes = {"float32": 4, "bfloat16": 2, "float16": 2}
    if dtype not in itemsizes:
        raise UserError(f"--dtype must be one of {', '.join(itemsizes)} for a plan, not {dtype!r}")
    height, width = exact_size(size)
    path = zoo.find(model)
    checkpoint = checkpoints.read(path)
    try:
        network = checkpoint.network()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    plan = build(network) if written else optimise(build(network))
    form = (batch, height, width, itemsizes[dtype])
    title = f"{Path(model).stem}: {plan.name}{' as written' if written else ''}, {dtype}"
    if figure is not None:
        show.draw(plan, figure, *form, title=title)
        _note(f"{figure}: written", as_json)
    if as_json:
        facts = {"model": Path(model).stem, "dtype": dtype, "written": written}
        print(json.dumps(facts | show.to_dict(plan, *form), indent=1))
    else:
        print(show.table(plan, *form, title=title))


def exact_size(text: str) -> tuple[int, int]:
    """(H, W) that the network can have as its input."""
    from stdc_fast import images

    if text == "native":
        raise UserError("--size must be HEIGHTxWIDTH here, for example 512x1024, not 'native'")
    height, width = _parse_size(text)
    if min(height, width) < images.MIN_SIZE or height * width > images.MAX_PIXELS:
        raise UserError(
            f"--size {text}: both sides must be at least {images.MIN_SIZE} and the pixels at most "
            f"{images.MAX_PIXELS / 1e6:.0f} million; choose another size"
        )
    return height, width


def _parse_size(text: str | None, option: str = "--size") -> str | tuple[int, int] | None:
    if text is None or (text == "native" and option == "--size"):
        return text
    height, _, width = text.lower().partition("x")
    if not (re.fullmatch(r"[0-9]{1,9}", height) and re.fullmatch(r"[0-9]{1,9}", width)):
        raise UserError(f"{option} must be HEIGHTxWIDTH, for example 512x1024, not {text!r}")
    return int(height), int(width)


app.command()(export)
app.command()(tune)
app.command()(benchmark)


def _finite(value: float) -> float | None:
    return value if value == value else None


def _note(text: str, quiet: bool) -> None:
    if not quiet:
        print(text, file=sys.stderr)


def _progress(items, what: str, quiet: bool, show: bool = True):
    from tqdm import tqdm

    # A generator, so that the bar appears with the first item: an error before it has its own line.
    yield from tqdm(items, what, unit="img", disable=quiet or not show)


def main() -> None:
    """Entry point of ``stdc-fast``: a user's mistake is one line and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # file names may be no text
    try:
        app(prog_name="stdc-fast")
    except UserError as error:
        print(f"stdc-fast: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        # The reader of a pipe left (head); the interpreter must not try to flush to it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
