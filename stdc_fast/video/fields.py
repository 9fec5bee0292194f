"""Interlaced pictures to whole ones, by FFmpeg's filter."""

from __future__ import annotations

import collections
import logging

from stdc_fast.video.pyav import av

log = logging.getLogger(__name__)

_FILTERS = ("bwdif", "yadif")  # the better one first


class Deinterlacer:
    """Gives whole pictures for the frames of one video, each with the time of its own.

    Frames before the first interlaced one pass as they are. Afterwards one frame waits for the next.
    """

    def __init__(self, name: str):
        self._name, self._graph, self._shape = name, None, None
        self._waiting: collections.deque[object] = collections.deque()
        self._filter = ""

    def put(self, frame, time: object) -> list[tuple[object, object]]:
        """(frame, time) of those that are finished."""
        if self._graph is None and not frame.interlaced_frame:
            return [(frame, time)]
        done = []
        shape = frame.width, frame.height, frame.format.name
        if shape != self._shape:
            done += self.end()
            self._shape = shape
            self._graph = self._make(frame)
        if not self._filter:
            return [*done, (frame, time)]
        self._waiting.append(time)
        self._graph.push(frame)
        return done + self._pull()

    def end(self) -> list[tuple[object, object]]:
        """Those that still wait."""
        if not self._waiting:
            return []
        self._graph.push(None)
        return self._pull()

    def _pull(self) -> list[tuple[object, object]]:
        done, wrappers = [], av()
        try:
            while self._waiting:
                done.append((self._graph.pull(), self._waiting.popleft()))
        except (wrappers.error.BlockingIOError, wrappers.error.EOFError):
            pass
        return done

    def _make(self, frame):
        self._filter = next((f for f in _FILTERS if f in av().filter.filters_available), "")
        if not self._filter:
            log.warning(
                "%s: is interlaced, and this PyAV can not mend that: moving edges are combs", self._name
            )
        graph = av().filter.Graph()
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format.name, time_base=frame.time_base
        )
        sink = graph.add("buffersink")
        if self._filter:
            middle = graph.add(self._filter, "mode=send_frame:deint=interlaced")
            source.link_to(middle)
            middle.link_to(sink)
            graph.configure()
        return graph
