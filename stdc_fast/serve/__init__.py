"""Labels pictures for clients over HTTP: ``stdc-fast serve``, and an application to mount in others.

The packages of the extra ``serve`` are imported with :func:`create_app`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING

from stdc_fast.errors import UserError
from stdc_fast.serve.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from stdc_fast.segmenter import Segmenter

__all__ = ["Settings", "check_installed", "create_app"]

_NEEDS = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")


def check_installed() -> None:
    """UserError, with the line that installs them, unless all packages are there."""
    missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f'serving needs {", ".join(missing)}, which is not installed; run: pip install "stdc-fast[serve]"'
        )


def create_app(model: Segmenter | Callable[[], Segmenter], settings: Settings | None = None) -> FastAPI:
    """The service as an ASGI application: to run by any server, or to mount in an application.

    Args:
        model: a loaded model, or a function that loads one; it is called in a thread of its own, and
            ``/readyz`` answers 503 meanwhile.
        settings: limits and batches; None for the defaults.

    Its threads start with the application, or where it is mounted with the first request. They end with the
    application's lifespan, or by ``app.state.service.close()``. UserError without the extra ``serve``.
    """
    check_installed()
    from stdc_fast.serve.app import application

    return application(model, settings or Settings())
