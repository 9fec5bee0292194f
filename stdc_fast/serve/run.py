"""Runs the service by uvicorn until a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn

from stdc_fast.errors import UserError
from stdc_fast.segmenter import Segmenter
from stdc_fast.serve.app import application
from stdc_fast.serve.service import Service
from stdc_fast.serve.settings import Settings

#: Seconds that connections without an accepted picture have to end.
_LAST = 5


class _Server(uvicorn.Server):
    """Without uvicorn's own handlers of signals: accepted pictures are finished first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run(
    load: Callable[[], Segmenter],
    settings: Settings,
    host: str,
    port: int,
    listening: Callable[[str, bool], None],
    ready: Callable[[Segmenter], None],
) -> None:
    """Serve until SIGTERM or SIGINT; a second one ends it at once.

    ``listening(address, loopback)`` is called when clients can connect, ``ready(model)`` when pictures are
    taken. UserError for an address that can not be had, and what ``load`` raises.
    """
    with _bound(host, port) as listener:
        asyncio.run(_serve(load, settings, listener, listening, ready))


def _bound(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 is any that is free."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
            listener.listen()  # at once: only then is the port taken for another process
        except OSError:
            listener.close()
            raise
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{host}, port {port}: {reason}; choose another --host or --port") from None
    return listener


def _address(listener: socket.socket) -> tuple[str, bool]:
    """As a browser takes it, and whether only this machine reaches it."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/", ipaddress.ip_address(host.split("%")[0]).is_loopback


async def _serve(load, settings, listener, listening, ready) -> None:
    app = application(load, settings)
    service: Service = app.state.service
    config = uvicorn.Config(
        app, http="h11", ws="none", lifespan="on", log_config=None, access_log=False, server_header=False,
        timeout_graceful_shutdown=_LAST,
    )  # fmt: skip
    server, loop = _Server(config), asyncio.get_running_loop()
    tasks: list[asyncio.Task] = []

    async def finish() -> None:
        await service.drained()
        server.should_exit = True

    def stop() -> None:
        if service.draining:
            server.force_exit = server.should_exit = True
        service.draining = True
        tasks.append(loop.create_task(finish()))

    async def watch() -> None:
        while not server.started:
            await asyncio.sleep(0.01)
        listening(*_address(listener))
        while service.segmenter is None and service.failure is None:
            await asyncio.sleep(0.02)
        if service.failure is not None:
            server.should_exit = True
        else:
            ready(service.segmenter)

    with _signals(lambda: loop.call_soon_threadsafe(stop)):
        tasks.append(loop.create_task(watch()))
        await server.serve(sockets=[listener])
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    if service.failure is not None:
        raise service.failure


@contextlib.contextmanager
def _signals(stop: Callable[[], object]) -> Iterator[None]:
    before = {one: signal.signal(one, lambda *_: stop()) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
