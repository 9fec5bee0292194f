"""Pictures, label files and descriptions of data sets under atheris, which is led by the code that runs.

    pip install atheris
    python -m tests.fuzz.guided image --seconds 900 --keep build/fuzz

Kinds are those of ``targets.py``. All but UserError is a find: atheris then writes the file to ``--keep`` and
ends with code 77. The corpus stays there as well, so that a later run goes on.
"""

import argparse
import contextlib
import logging
import os
import sys
import tempfile
from pathlib import Path

import atheris

# Imported without counters: they take long, and the fuzzer is to look at what opens files.
import torch  # noqa: F401

with atheris.instrument_imports(
    include=["stdc_fast.images", "stdc_fast.colour", "stdc_fast.samples", "stdc_fast.containers",
             "stdc_fast.datasets", "PIL"]
):  # fmt: skip
    from stdc_fast.errors import UserError
    from tests.fuzz import targets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kind", choices=["description", "image", "label"])
    parser.add_argument("--seconds", type=int, default=900)
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"))
    arguments = parser.parse_args()
    logging.getLogger("stdc_fast").setLevel(logging.ERROR)
    corpus = (arguments.keep / arguments.kind).resolve()
    corpus.mkdir(parents=True, exist_ok=True)
    sound, target = targets.TARGETS[arguments.kind]
    names = sorted(sound())
    for number, name in enumerate(names):
        # The first byte says which name the file has.
        (corpus / name).write_bytes(bytes([number]) + sound()[name])
    # Some files stay between runs of a target, such as a data set's photos.
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    os.chdir(folder)

    def one(data: bytes) -> None:
        if data:
            path = folder / names[data[0] % len(names)]
            path.write_bytes(data[1:])
            with contextlib.suppress(UserError):
                target(path)
            path.unlink()

    limits = [f"-max_total_time={arguments.seconds}", "-timeout=10", "-rss_limit_mb=2000", "-max_len=20000"]
    atheris.Setup(
        [sys.argv[0], *limits, f"-artifact_prefix={corpus.parent}/{arguments.kind}-", str(corpus)], one
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
