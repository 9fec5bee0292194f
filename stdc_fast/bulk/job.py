"""A job in its folder: what it is of, its listing, which shards are done, and the lock on it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stdc_fast import checkpoints
from stdc_fast.bulk import frames, outputs
from stdc_fast.bulk.frames import Frame, Listing
from stdc_fast.bulk.outputs import OutputError, put
from stdc_fast.bulk.sources import PICTURE, Sources
from stdc_fast.classes import ClassSet, cityscapes_ids
from stdc_fast.errors import UserError, announce
from stdc_fast.files import write_errors
from stdc_fast.input_size import check_request
from stdc_fast.samples import check_range
from stdc_fast.version import __version__
from stdc_fast.video.colour import MATRICES

if TYPE_CHECKING:
    from stdc_fast.segmenter import Segmenter

FORMAT = "stdc_fast job 1"
#: Frames of a shard.
SHARD = 1000
#: Seconds that a lock is waited for: who asks for a job's state holds it for a moment.
PATIENCE = 1.0
#: What decides the results besides the sources and the model, and what it is if nobody says.
OPTIONS: dict[str, object] = {
    "to": "png", "shard": SHARD, "rle": False, "label_ids": False, "scale": None, "size": None,
    "range": None, "matrix": None,
}  # fmt: skip


def about(model: Segmenter) -> dict[str, object]:
    """All of a model that decides its labels, as JSON values, and its name."""
    found: dict[str, object] = {
        "name": model.name,
        "weights": checkpoints.fingerprint(model.network),
        "classes": list(model.classes.names),
        "palette": [list(colour) for colour in model.classes.palette],
        "input_size": [model.input_size.short_side, model.input_size.scale],
        "align_corners": model.network.align_corners,
        "backend": model.backend,
        "dtype": str(model.precision),
        "memory": model.memory,
    }
    if model.precision.levels and model.calibration is not None:
        digest = hashlib.sha256(json.dumps(model.calibration.facts(), sort_keys=True).encode())
        for name, tensor in sorted(model.calibration.tensors().items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
        found["ranges"] = digest.hexdigest()
    return found


class Job:
    """A job that is open: its folder is locked until :meth:`close`, or the process ends.

    Args:
        out: folder of the results, empty or of the same job.
        sources: files, folders and globs.
        model: :func:`about` it.
        options: those of :data:`OPTIONS` that are not as there.
        retry_failures: frames that failed are :meth:`pending` again, and files of theirs may have changed.

    UserError where another process works on it, the folder holds something else, or sources, model, options
    or version are not those that the job began with; it says which.
    """

    def __init__(
        self,
        out: str | os.PathLike,
        sources: Sequence[str | os.PathLike],
        model: Mapping[str, object],
        options: Mapping[str, object] | None = None,
        retry_failures: bool = False,
    ):
        self.out = Path(os.path.abspath(out))
        self.options = OPTIONS | json.loads(json.dumps(dict(options or {})))  # tuples become lists
        self.retry_failures = retry_failures
        _check_options(self.options, model)
        if read_manifest(self.out) is None:
            if retry_failures:
                raise UserError(f"{out}: holds no job to retry failures of; leave out --retry-failures")
            if self.out.exists() and not self.out.is_dir():
                raise UserError(f"{out}: is a file; choose a folder for the results")
            if self.out.exists() and {p.name for p in self.out.iterdir()} - {"job"}:
                raise UserError(f"{out}: holds other files and no job; choose an empty folder")
        found = Sources(sources, self.out, self.options["to"] == "webdataset")
        self.root = found.root
        folder = self.out / "job"
        with write_errors(folder):
            (folder / "shards").mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.out)
        try:
            shutil.rmtree(folder / "tmp", ignore_errors=True)  # of a process that was killed
            with write_errors(folder):
                (folder / "tmp").mkdir()
            kind, rle, label_ids = (self.options[name] for name in ("to", "rle", "label_ids"))
            self.output = outputs.make(kind, self.out, folder / "tmp", rle, label_ids)
            begun = read_manifest(self.out)  # now that nobody else begins it
            if begun is not None:
                _check_same(begun, model, self.options, self.out)
            self._begin(found, begun, model)
            self.refresh()
        except BaseException:
            self._release()
            raise

    def _begin(self, found: Sources, begun: dict | None, model: Mapping[str, object]) -> None:
        """The listing of a new job, or the one there is, if it still holds."""
        text_keys, dotless = self.options["to"] != "png", self.options["to"] == "webdataset"
        if begun is None:
            entries = (frames.count(one, dotless, text_keys) for one in found.inputs())
            self.listing = self._write(entries, model, found.root)
            return
        self.listing = _listing(self.out, begun)
        retried = {f["path"] for _, r in _records(self.out) for f in r["failures"] if f["kind"] == PICTURE}
        different = frames.difference(
            self.listing, found.inputs(), retried if self.retry_failures else frozenset()
        )
        if different:
            raise UserError(
                f"{self.out}: the sources changed since this job began: {different}; restore them, or choose "
                "another --out"
            )
        if self.retry_failures:
            pairs = zip(self.listing.entries(), found.inputs(), strict=True)
            entries = (e if e.input == now else frames.count(now, dotless, text_keys) for e, now in pairs)
            self.listing = self._write(entries, begun["model"], found.root)

    def _write(self, entries: Iterable[frames.Entry], model: Mapping[str, object], root: str) -> Listing:
        folder = self.out / "job"
        listing, digest = frames.write(folder / "tmp" / "listing.jsonl", entries, self.options["shard"])
        listing.path = listing.path.replace(folder / f"listing-{digest[:16]}.jsonl")
        manifest = {
            "format": FORMAT,
            "version": __version__,
            "model": dict(model),
            "options": self.options,
            "source": {"root": root, "digest": digest},
            "listing": listing.path.name,
            "frames": listing.frames,
            "shards": listing.shards,
        }
        put(self.out / "job.json", (json.dumps(manifest) + "\n").encode(), folder / "tmp")
        for other in folder.glob("listing-*.jsonl"):  # before a retry, or of a start that was killed
            if other.name != listing.path.name:
                other.unlink()
        return listing

    @classmethod
    def part(cls, out: str | os.PathLike, retry_failures: bool) -> Job:
        """A job for a helper of the process that holds its lock: to do shards and to record them."""
        job = cls.__new__(cls)
        job.out = Path(out)
        manifest = read_manifest(job.out)
        if manifest is None:
            raise UserError(f"{out}: holds no job here; its folder must be the same on all machines")
        job.options, job.model, job.root = manifest["options"], manifest["model"], manifest["source"]["root"]
        job.retry_failures = retry_failures
        kind, rle, label_ids = (job.options[name] for name in ("to", "rle", "label_ids"))
        job.output = outputs.make(kind, job.out, job.out / "job" / "tmp", rle, label_ids)
        job.listing = _listing(job.out, manifest)
        job._records = {}
        return job

    def refresh(self) -> None:
        """Read what is recorded of shards, by this process and others."""
        self._records = dict(_records(self.out))

    def done(self, shard: int) -> bool:
        """Whether a shard is done by now, by whomever."""
        path = _record(self.out, shard)
        if path.exists():
            self._records[shard] = json.loads(path.read_bytes())
        return self._done(shard)

    def pending(self) -> list[int]:
        """Shards that are not done, or lack results, or, with retry_failures, that have failures."""
        return [shard for shard in range(len(self.listing.shards)) if not self._done(shard)]

    def _done(self, shard: int) -> bool:
        record = self._records.get(shard)
        if record is None:
            return False
        if self._bytes_of(shard, {failure["key"] for failure in record["failures"]}) != record["bytes"]:
            lost = "results are gone or changed since they were written, as of shard %d; they are made again"
            announce(str(self.out / "job.json"), lost, shard)
            del self._records[shard]
            return False
        return not (self.retry_failures and record["failures"])

    def _bytes_of(self, shard: int, failed: set[str]) -> int | None:
        return self.output.bytes_of(shard, (f for f in self.listing.frames_of(shard) if f.key not in failed))

    def work(self, shard: int) -> Iterator[tuple[Frame, object]]:
        """(frame, what is there of its result or None) for all frames of a shard."""
        record, kept = self._records.get(shard), iter(())
        failed = {failure["key"] for failure in record["failures"]} if record else set()
        if record and self.options["to"] != "png":
            kept = self.output.kept(shard)
        for frame in self.listing.frames_of(shard):
            if self.output.finished(frame):
                yield frame, True
            elif record and frame.key not in failed:
                yield frame, next(kept, None)
            else:
                yield frame, None

    def finish(self, shard: int, failures: Sequence[tuple[Frame, str]]) -> None:
        """Record that a shard is done; its results are in place. OutputError if that can not be written."""
        record = {
            "shard": shard,
            "frames": self.listing.length(shard),
            "failures": [
                {"key": f.key, "kind": f.kind, "path": f.path, "reason": text} for f, text in failures
            ],
            "bytes": self._bytes_of(shard, {f.key for f, _ in failures}),
        }
        put(_record(self.out, shard), (json.dumps(record) + "\n").encode(), self.output.scratch)
        self._records[shard] = record

    def close(self) -> None:
        """Write failures.jsonl, as far as there are records, and give the folder free."""
        with contextlib.suppress(OutputError):
            write_failures(self.out, self.output.scratch)
        self._release()

    def _release(self) -> None:
        shutil.rmtree(self.out / "job" / "tmp", ignore_errors=True)
        self._lock.release()

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _check_options(options: Mapping[str, object], model: Mapping[str, object]) -> None:
    """UserError for what would make each frame fail."""
    if unknown := sorted(set(options) - set(OPTIONS)):
        raise UserError(f"unknown option {unknown[0]!r} of a job; there are {', '.join(OPTIONS)}")
    shard, matrix = options["shard"], options["matrix"]
    if isinstance(shard, bool) or not isinstance(shard, int) or shard < 1:
        raise UserError(f"--shard is a number of frames from 1 on, not {shard!r}")
    if options["label_ids"]:
        cityscapes_ids(ClassSet(tuple(model["classes"]), tuple(map(tuple, model["palette"]))))
    check_request(options["scale"], options["size"])
    if options["range"] is not None:
        check_range(options["range"])
    if matrix is not None and matrix not in MATRICES:
        raise UserError(f"--matrix must be one of {', '.join(MATRICES)}, not {matrix!r}")


def _check_same(
    begun: Mapping, model: Mapping[str, object], options: Mapping[str, object], out: Path
) -> None:
    """UserError unless a job began with these."""
    if begun["version"] != __version__:
        raise UserError(
            f"{out}: the job began with stdc_fast {begun['version']}, and this is {__version__}; install "
            "that version, or choose another --out"
        )
    for name, value in options.items():
        if begun["options"].get(name) != value:
            flag = "--" + name.replace("_", "-")
            raise UserError(
                f"{out}: the job began with {flag} {begun['options'].get(name)}, not {value}; give the same "
                "options, or choose another --out"
            )
    for name in sorted({*model, *begun["model"]} - {"name"}):
        before, now = begun["model"].get(name), model.get(name)
        if before != json.loads(json.dumps(now)):
            shown = [str(v)[:12] if name in ("weights", "ranges") else v for v in (before, now)]
            named = f" ({begun['model']['name']}, now {model['name']})" if name == "weights" else ""
            raise UserError(
                f"{out}: the job began with a model of {name} {shown[0]}, not {shown[1]}{named}; give the "
                "same model, --backend and --dtype, or choose another --out"
            )


def read_manifest(out: Path) -> dict | None:
    """What job.json says; None where there is none. UserError where it is damaged or of another format."""
    path = out / "job.json"
    try:
        found = json.loads(path.read_bytes())
        if found["format"] == FORMAT:
            return found
        reason = f"its format is {found['format']}"
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
    raise UserError(f"{path}: is no job of this version ({reason}); choose another --out")


def _listing(out: Path, manifest: Mapping) -> Listing:
    path = out / "job" / manifest["listing"]
    if not path.is_file():
        raise UserError(f"{path}: is gone, so that the job can not go on; choose another --out")
    shards = [tuple(pair) for pair in manifest["shards"]]
    return Listing(path, shards, manifest["frames"], manifest["options"]["shard"])


def _lock(out: Path):
    from filelock import FileLock, Timeout

    lock = FileLock(out / "job" / "lock")
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise UserError(f"{out}: another process works on this job; wait, or choose another --out") from None
    except (OSError, NotImplementedError) as error:
        raise UserError(f"{out}: can not be locked ({error}); choose a folder on another disk") from None
    return lock


def _record(out: Path, shard: int) -> Path:
    return out / "job" / "shards" / f"{shard:06d}.json"


def _records(out: Path) -> Iterator[tuple[int, dict]]:
    """(shard, what was recorded) of shards that are done, in order."""
    for path in sorted((out / "job" / "shards").glob("[0-9]*.json"), key=lambda path: int(path.stem)):
        try:
            yield int(path.stem), json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: is damaged ({error}); delete it, and its shard is done again") from None


def write_failures(out: Path, scratch: Path) -> None:
    """failures.jsonl: a line a frame that failed, of all shards that are done."""
    lines = (json.dumps(failure) + "\n" for _, record in _records(out) for failure in record["failures"])
    put(out / "failures.jsonl", "".join(lines).encode(), scratch)


def status(out: str | os.PathLike) -> dict[str, object]:
    """Where a job stands, as JSON values.

    "model", "to", "source"; "frames" in all, "labelled" and "failed" of shards that are done; "shards" with
    the state of each, "done" or "pending"; "running", whether a process works on it, or None where that can
    not be asked, as on a disk that is only read. UserError where there is none.
    """
    from filelock import FileLock, Timeout

    out = Path(os.path.abspath(out))
    manifest = read_manifest(out)
    if manifest is None:
        raise UserError(f"{out}: holds no job; begin one with stdc-fast label SRC --out {out}")
    listing, records = _listing(out, manifest), dict(_records(out))
    try:
        with FileLock(out / "job" / "lock", timeout=0):
            running = False
    except Timeout:
        running = True
    except (OSError, NotImplementedError):
        running = None
    failed = sum(len(record["failures"]) for record in records.values())
    return {
        "model": manifest["model"]["name"],
        "to": manifest["options"]["to"],
        "source": manifest["source"]["root"],
        "frames": listing.frames,
        "labelled": sum(record["frames"] for record in records.values()) - failed,
        "failed": failed,
        "shards": ["done" if shard in records else "pending" for shard in range(len(listing.shards))],
        "running": running,
    }
