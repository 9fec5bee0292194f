"""The service's HTTP: paths, statuses, headers, and the page."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated

import anyio
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stdc_fast.errors import UserError
from stdc_fast.segmenter import Segmenter
from stdc_fast.serve import metrics, outputs
from stdc_fast.serve.bodies import Refusal
from stdc_fast.serve.service import Service
from stdc_fast.serve.settings import Settings
from stdc_fast.version import __version__

_log = logging.getLogger(__name__)

_PAGE = Path(__file__).with_name("page.html")
#: Nothing from elsewhere: the page is one file.
_POLICY = (
    "default-src 'none'; img-src 'self' blob: data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
#: An answer goes out in pieces, so that a client that does not take them is noticed.
_PIECE = 64 << 10
#: Of paths in metrics; others are one.
_PATHS = ("/predict", "/healthz", "/readyz", "/metrics", "/info", "/")
_HELD = "stdc_fast.held"
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            },
        },
    },
}
_ERROR = {"content": {outputs.JSON: {"schema": {
    "type": "object", "required": ["error"], "properties": {"error": {"type": "string"}},
}}}}  # fmt: skip
_RESPONSES = {
    200: {
        "description": "Labels as PNG, an overlay, JSON, or COCO annotations.",
        "content": {kind: {} for kind in (outputs.JSON, *outputs.TYPES.values())},
    },
    **{
        status: {"description": text, **_ERROR}
        for status, text in {
            400: "A form that can not be read", 406: "Nothing that Accept takes",
            408: "The body came too slowly",
            413: "Too many bytes or pixels", 415: "Another media type", 422: "A bad picture or parameter",
            429: "Too many pictures at once; Retry-After says when", 501: "A package is not installed",
            503: "Loading, shutting down, or not in time",
        }.items()
    },
}  # fmt: skip


def application(model: Segmenter | Callable[[], Segmenter], settings: Settings) -> FastAPI:
    """As :func:`stdc_fast.serve.create_app`."""
    service = Service(model, settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        service.draining = True
        await anyio.to_thread.run_sync(service.close)

    app = FastAPI(
        title="stdc_fast", version=__version__, lifespan=lifespan,
        description="Labels every pixel of a street picture.",
    )  # fmt: skip
    app.state.service = service
    app.add_middleware(_Around, service=service)
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    _add_paths(app, service)
    return app


def _add_paths(app: FastAPI, service: Service) -> None:
    async def predict(
        request: Request,
        output: Annotated[str | None, Query(description="labels, overlay, json or coco")] = None,
        format: Annotated[str | None, Query(description="of overlays: jpg, png or webp")] = None,
        quality: Annotated[int | None, Query(description="of jpg and webp, 1 to 100")] = None,
        alpha: Annotated[float, Query(description="weight of the colours in overlays, 0 to 1")] = 0.55,
        legend: Annotated[bool, Query(description="name the classes below overlays")] = False,
        side_by_side: Annotated[bool, Query(description="in overlays, the picture to the left")] = False,
        embed: Annotated[
            str | None, Query(description="json holds this picture too: labels or colours")
        ] = None,
    ) -> Response:
        _known_parameters(request)
        output, form = outputs.negotiate(output, format, request.headers.get("accept"))
        for name in ("alpha", "legend", "side_by_side"):
            if output != "overlay" and name in request.query_params:
                raise Refusal(422, f"{name} is for output overlay, not {output}; leave it out")
        if output == "coco" and importlib.util.find_spec("pycocotools") is None:
            raise Refusal(501, 'coco needs pycocotools on the server; pip install "stdc-fast[results]" there')
        wanted = outputs.Wanted(output, form, quality, alpha, legend, side_by_side, embed)
        content, name, received = await service.receive(request)
        request.scope[_HELD]()
        answer = await service.answer(request, content, name, wanted, received)
        timing = ", ".join(f"{stage};dur={1e3 * took:.1f}" for stage, took in answer.seconds.items())
        headers = {"Server-Timing": timing, "X-Model": _header(service.segmenter.name)}
        if answer.remarks:
            headers["X-Remarks"] = _header("; ".join(answer.remarks))
        return Response(answer.body, media_type=wanted.media_type, headers=headers)

    how = {"methods": ["POST"], "openapi_extra": _BODY, "responses": _RESPONSES, "response_class": Response}
    app.add_api_route("/predict", predict, summary="Label one picture", **how)

    @app.get("/healthz", summary="Whether it lives")
    async def healthz() -> JSONResponse:
        alive = service.alive
        return JSONResponse({"alive": alive} if alive else _said("does not label"), 200 if alive else 503)

    @app.get("/readyz", summary="Whether it takes pictures")
    async def readyz() -> JSONResponse:
        service.start()
        reason = service.why_not_ready()
        return JSONResponse({"ready": True} if reason is None else _said(reason), 503 if reason else 200)

    @app.get("/metrics", summary="For Prometheus", response_class=Response)
    async def read_metrics() -> Response:
        return Response(service.metrics.text(), headers={"Content-Type": metrics.MEDIA_TYPE})

    @app.get("/info", summary="The model and the limits")
    async def info() -> dict[str, object]:
        return describe(service.check_open(), service.settings)

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(_PAGE.read_text("utf-8"), headers={"Content-Security-Policy": _POLICY})


def describe(segmenter: Segmenter, settings: Settings) -> dict[str, object]:
    """What ``/info`` says, as JSON values."""
    classes, size = segmenter.classes, segmenter.input_size
    return {
        "model": segmenter.name,
        "version": __version__,
        "backend": segmenter.backend,
        "device": str(segmenter.device),
        "dtype": segmenter.precision.name,
        "reason": segmenter.reason,
        "input_size": {
            "short_side": size.short_side,
            "scale": settings.scale if settings.scale is not None else size.scale,
            "size": list(settings.size) if isinstance(settings.size, tuple) else settings.size,
        },
        "classes": [
            {"id": i, "name": name, "colour": list(colour), "shown": list(shown)}
            for i, (name, colour, shown) in enumerate(
                zip(classes.names, classes.palette, classes.shown, strict=True)
            )
        ],
        "limits": {**dataclasses.asdict(settings), "max_batch": settings.batch_on(segmenter.device.type)},
        "outputs": {name: list(kinds) for name, kinds in outputs.OUTPUTS.items()},
    }


def _known_parameters(request: Request) -> None:
    known = ("output", "format", "quality", "alpha", "legend", "side_by_side", "embed")
    for name in request.query_params:
        if name not in known:
            raise Refusal(422, f"there is no parameter {name[:40]!r}; there are {', '.join(known)}")
        if len(request.query_params.getlist(name)) > 1:
            raise Refusal(422, f"{name} is given more than once; give it once")


def _header(text: str) -> str:
    """Of ASCII and one line, as headers are."""
    return (
        text.encode("ascii", "backslashreplace").decode("ascii").replace("\n", " ").replace("\r", " ")[:1000]
    )


def _said(message: str) -> dict[str, str]:
    return {"error": message}


# Every error is JSON with one line.


async def _refused(_: Request, error: Refusal) -> JSONResponse:
    return JSONResponse(_said(error.message), error.status, headers=error.headers)


async def _mistaken(_: Request, error: UserError) -> JSONResponse:
    return JSONResponse(_said(str(error).split("\n")[0]), 422)


async def _unacceptable(_: Request, error: outputs.NotAcceptable) -> JSONResponse:
    return JSONResponse(_said(str(error)), 406)


async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    return JSONResponse(
        _said(f"parameter {first['loc'][-1]}: {first['msg']}, not {first.get('input')!r}"), 422
    )


async def _of_http(_: Request, error: HTTPException) -> JSONResponse:
    return JSONResponse(_said(str(error.detail)), error.status_code, headers=error.headers)


async def _unforeseen(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse(_said("an error of the service; its log has more"), 500)


_HANDLERS = {
    Refusal: _refused,
    UserError: _mistaken,
    outputs.NotAcceptable: _unacceptable,
    RequestValidationError: _invalid,
    HTTPException: _of_http,
    Exception: _unforeseen,
}


class _Around:
    """Around every request: counts it, holds its place until the answer is sent, and sends in pieces."""

    def __init__(self, app: ASGIApp, service: Service):
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        service, held, status = self._service, False, 500

        def hold() -> None:
            nonlocal held
            held = True
            service.held += 1

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {
                    **message,
                    "headers": [*message["headers"], (b"x-content-type-options", b"nosniff")],
                }
            body = message.get("body", b"")
            for start in range(0, len(body) - _PIECE, _PIECE):
                await send({"type": message["type"], "body": body[start : start + _PIECE], "more_body": True})
            if len(body) > _PIECE:
                message = {**message, "body": body[(len(body) - 1) // _PIECE * _PIECE :]}
            await send(message)

        async def within(message: Message) -> None:
            with anyio.fail_after(service.settings.read_timeout):
                await sending(message)

        try:
            # HEAD is GET to the application; the server leaves the body out.
            method = "GET" if scope["method"] == "HEAD" else scope["method"]
            await self._app({**scope, "method": method, _HELD: hold}, receive, within)
        except ClientDisconnect:
            status = 499
        except TimeoutError:  # of a client that does not take its answer; the server closes the connection
            status = 499
        finally:
            if held:
                service.held -= 1
            path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
            service.metrics.requests.labels(path if path in _PATHS else "other", str(status)).inc()
