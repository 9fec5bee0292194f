"""The command line: ``stdc-fast predict | label | val | train | convert | info | ...``, see ``--help``.

Exit codes: 0 done; 1 done in part: some images or videos failed, a benchmark has no speed of ours, or
doctor's file can not be loaded; 2 nothing was done, for a reason said in one line on stderr; 130
interrupted. Results go to stdout, progress and messages to stderr.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import Annotated

import typer

from stdc_fast.cli import (
    benchmark,
    calibrate,
    convert,
    doctor,
    export,
    info,
    label,
    models,
    predict,
    serve,
    train,
    tune,
    val,
)
from stdc_fast.errors import UserError
from stdc_fast.version import __version__

app = typer.Typer(
    name="stdc-fast",
    help="STDC-Seg real-time semantic segmentation.",
    no_args_is_help=True,
    rich_markup_mode=None,  # whose tables leave 20 columns to each text on usual terminals
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    predict.predict, label.label, val.val, train.train, convert.convert, doctor.doctor, info.info,
    models.models, models.download, calibrate.calibrate, export.export, serve.serve, tune.tune,
    benchmark.benchmark,
):  # fmt: skip
    app.command()(command)


def _version(show: bool) -> None:
    if show:
        print(f"stdc-fast {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of ``stdc-fast``: a user's mistake is one line and exit code 2."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started this, as by >&-
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, until the process ends
        getattr(sys, name).reconfigure(errors="backslashreplace")  # file names may be no text
    # As Ctrl-C does, so that files which are being written are tidied up.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        app(prog_name="stdc-fast")
        sys.stdout.flush()
    except UserError as error:
        print(f"stdc-fast: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # while modules are loaded; commands tidy up by themselves
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        # The reader of a pipe left (head); the interpreter must not try to flush to it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        # Of files a UserError tells; an error without a file's name is of stdout, such as on a full disk.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        where = error.filename or "stdout can not be written"
        with contextlib.suppress(OSError):
            print(f"stdc-fast: {where}: {error.strerror or error}; mend that and try again", file=sys.stderr)
        sys.exit(1)
    finally:
        signal.signal(signal.SIGTERM, before)
