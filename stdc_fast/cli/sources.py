"""Sources of ``stdc-fast predict`` in their turn: pictures several at once, videos and cameras alone."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from stdc_fast import images, listing, video, web
from stdc_fast.errors import UserError
from stdc_fast.to_files import Task, ToFiles

NO_LABELS = (
    "{}: labels of videos are not written; leave out --labels, or use predict(..., stream=True) in Python"
)


def found(sources: list[str], recursive: bool) -> tuple[list[str | Path], list[Path], list[tuple[str, str]]]:
    """Files of all sources, the folders of their results below --out, and what failed, with its message."""
    folders: dict[str | Path, Path] = {}
    files, failures, trees = [], [], 0
    for source in sources:
        try:
            # An address as it is: a path would lose one of its slashes.
            own = [source] if video.is_video(source) else listing.expand(source, recursive)[0]
        except UserError as error:
            failures.append((web.shown(source), str(error)))
            continue
        if recursive and os.path.isdir(source):
            trees += 1
            for file in own:  # of a folder in another one those of the other
                folders.setdefault(file, file.parent.relative_to(source))
        files += own
    if recursive and not trees and not failures:
        raise UserError("--recursive is about folders, and there is none; leave it out")
    files = listing.without_results(files)
    return files, [folders.get(file, Path()) for file in files], failures


@dataclasses.dataclass(frozen=True)
class Source(Task):
    """A task with what it came of.

    Attributes:
        key: name of its results below --out.
        file: the path, camera or address.
        is_video: whether it is a video or a camera.
    """

    key: str = ""
    file: str | Path = ""
    is_video: bool = False


class Run:
    """All files of a command, one after the other.

    Attributes:
        left: names of results and files, of those that have not had their turn.
        skipped: files whose results are there.
        signal: number of the signal that ended a video before its first frame.
    """

    def __init__(
        self,
        work: ToFiles,
        out: Path,
        files: list[str | Path],
        names: list[str],
        videos: set[str | Path],
        *,
        labels: bool,
        skip_existing: bool,
    ):
        self.work, self.out, self.videos = work, out, videos
        self.labels, self.skip_existing = labels, skip_existing
        self.left = dict(zip(names, files, strict=True))
        self.total = len(files)
        self.skipped: list[Path] = []
        self.signal: int | None = None
        self._inputs = {os.path.realpath(file) for file in files}
        self._waiting = False

    def stop(self) -> None:
        """Let :meth:`rows` end soon; for signal handlers."""
        self.work.stopped = True
        if self._waiting:
            raise KeyboardInterrupt

    def said(self) -> str:
        """Where a run that was interrupted has stopped, and how to go on."""
        first = web.shown(str(next(iter(self.left.values()))))
        line = f"{len(self.left)} not begun, from {first} on"
        if all(file in self.videos for file in self.left.values()):
            return line
        return (
            f"interrupted: {self.total - len(self.left)} of {self.total} are done, {line}; "
            "the same command with --skip-existing goes on"
        )

    def rows(
        self, film: Callable[[str | Path, Path | None], dict[str, object]]
    ) -> Iterator[tuple[Source, dict[str, object] | UserError]]:
        """Each source with its result's values, or why there is none; ``film`` labels a video or a camera."""
        # What may wait is begun when all before it is written. It may take long, or have no end.
        for alone, pairs in itertools.groupby(list(self.left.items()), lambda pair: self._alone(pair[1])):
            pairs = list(pairs)
            for some in [[pair] for pair in pairs] if alone else [pairs]:
                for source, row in self._one(some[0], film) if alone else self.work.run(self._begun(some)):
                    self.left.pop(source.key)
                    yield source, row

    def _alone(self, file: str | Path) -> bool:
        return file in self.videos or images.waits(file)

    def _one(self, pair, film) -> Iterator[tuple[Source, dict[str, object] | UserError]]:
        """A video, or a picture that was waited for."""
        for source in self._begun([pair]):
            if not source.is_video:
                yield from self.work.run([source])
                continue
            try:
                row = film(source.file, source.targets.get("overlay"))
            except UserError as error:
                row = error
            except KeyboardInterrupt:  # before its first frame
                self.work.stopped, self.signal = True, signal.SIGINT
                return
            if isinstance(row, dict) and "signal" in row:
                self.work.stopped = True
            yield source, row

    def _begun(self, pairs: list[tuple[str, str | Path]]) -> Iterator[Source]:
        for key, file in pairs:
            if self.work.stopped:
                return
            try:
                source = self._source(key, file)
            except UserError as error:
                source = Source(None, images.name_of(file), {}, error, key, file)
            except KeyboardInterrupt:
                if not self.work.stopped:
                    raise
                return
            if self.skip_existing and not source.is_video and self.work.done(source):
                self.skipped.append(self.left.pop(key))
            else:
                yield source

    def _source(self, key: str, file: str | Path) -> Source:
        name = images.name_of(file)
        self._waiting = True
        try:
            held = images.held(file)
        finally:
            self._waiting = False
        is_video = file in self.videos and held is file
        if is_video and self.labels:
            raise UserError(NO_LABELS.format(web.shown(str(file))))
        stem = self.out / key
        if is_video:
            wanted = {"overlay": stem.with_name(f"{stem.name}_overlay.mp4")}
            targets = wanted if self.work.outputs.overlay else {}
        else:
            targets = self.work.outputs.targets(stem)
        for kind, target in targets.items():
            if os.path.realpath(target) in self._inputs:
                raise UserError(
                    f"{name}: its {kind} would overwrite {target}, an input; choose another --out"
                )
        return Source(held, name, targets, None, key, file, is_video)
