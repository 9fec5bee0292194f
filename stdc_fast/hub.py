"""Files of the Hugging Face Hub, by the package huggingface_hub: fetched, found in its cache, and sent.

Nothing here imports that package before it is needed. Its own variables hold, such as HF_TOKEN, HF_ENDPOINT,
HF_HOME and HF_HUB_OFFLINE; STDC_FAST_OFFLINE forbids downloads here, too.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from stdc_fast import download
from stdc_fast.calibration import record
from stdc_fast.errors import UserError

#: The files of :meth:`stdc_fast.Segmenter.save_pretrained`.
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
#: Suffixes of what may be weights, where a repository or folder has no :data:`WEIGHTS`.
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".tar", ".pdparams")
# https://huggingface.co/docs/huggingface_hub/package_reference/hf_uris
_REVISION = r"refs/(?:pr/\d+|convert/[\w.-]+)|[^/@]+"
_ADDRESS = re.compile(
    rf"hf://(?:models/)?(?!(?:datasets|spaces|kernels|buckets)/)([\w.-]+/[\w.-]+)(?:@({_REVISION}))?(?:/(.+))?"
)
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
# Modules of what raises the errors of connections, in the order in which releases of the package used them.
_CONNECTIONS = ("requests", "urllib3", "httpx", "httpcore", "httpx2", "httpcore2")


class Place(NamedTuple):
    """A repository, and in it a revision (None for its main branch) and a file (None for its weights)."""

    repository: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf://{self.repository}{revision}{f'/{self.file}' if self.file else ''}"


def is_address(text: str) -> bool:
    """Whether a text is meant as an address of the Hub, hf://..."""
    return text.startswith("hf://")


def is_repository(text: str) -> bool:
    """Whether a text has the form OWNER/NAME."""
    return _REPOSITORY.fullmatch(text) is not None


def parse(address: str) -> Place:
    """``hf://OWNER/NAME[@REVISION][/FILE]``. UserError for another form, also of data sets and spaces."""
    found = _ADDRESS.fullmatch(address)
    if found is None or ".." in (found[3] or "").split("/"):
        raise UserError(f"{address}: expected hf://OWNER/NAME of a model, then @REVISION and /FILE if wanted")
    return Place(found[1], found[2] and unquote(found[2]), found[3])


def find(place: Place, fetch: bool, **options: object) -> Path:
    """The weights file of a place in the package's cache, downloaded if it is not there and ``fetch``.

    ``options`` are those of ``hf_hub_download``: token, cache_dir, force_download. Beside a file of
    :data:`WEIGHTS` comes its :data:`CONFIG`, if there is one.

    Raises UserError, in one line, for a repository, revision or file that is not there or not open to the
    caller, several files that may be the weights, and a Hub that can not be reached.
    """
    package = _package()
    local = not fetch or download.offline()
    given = {"repo_id": place.repository, "revision": place.revision, "local_files_only": local, **options}
    with _errors(place, fetch):
        if place.file:
            return Path(package.hf_hub_download(filename=place.file, **given))
        try:
            path = Path(package.hf_hub_download(filename=WEIGHTS, **given))
        except package.errors.EntryNotFoundError as error:
            # Which also is what is raised where nothing of the repository is in the cache.
            name = choose(_names(package, place, given, error), str(place))
            return Path(package.hf_hub_download(filename=name, **given))
        with contextlib.suppress(package.errors.EntryNotFoundError):
            package.hf_hub_download(filename=CONFIG, **given)
        return path


def _names(package, place: Place, given: dict, error: Exception) -> list[str]:
    """Names of a repository's files, or of those in the cache where nothing else may be asked."""
    if not isinstance(error, package.errors.LocalEntryNotFoundError):
        api = package.HfApi(token=given.get("token"))
        return api.list_repo_files(place.repository, revision=place.revision)
    known = {k: given[k] for k in ("repo_id", "revision", "cache_dir") if k in given}
    try:
        folder = Path(package.snapshot_download(**known, local_files_only=True))
    except package.errors.LocalEntryNotFoundError:
        raise error from error.__cause__
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    if not any(name.endswith(SUFFIXES) for name in names):
        raise error
    return names


def choose(names: list[str], where: str) -> str:
    """The one name that weights have. UserError, which begins with ``where``, for none and for several."""
    if WEIGHTS in names:
        return WEIGHTS
    found = sorted(n for n in names if n.lower().endswith(SUFFIXES) and not n.endswith(record.SUFFIX))
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(f"{where}: has no {WEIGHTS}, and no other file of weights")
    more = ", ..." if len(found) > 5 else ""
    raise UserError(
        f"{where}: {len(found)} files may be the weights ({', '.join(found[:5])}{more}); give {where}/FILE"
    )


def upload(folder: Path, repository: str, message: str, *, private: bool | None, token: str | bool | None,
           branch: str | None, create_pr: bool, keep_card: bool) -> str:  # fmt: skip
    """Send a folder as one commit, into a new repository if there is none; returns the commit's address.

    ``keep_card`` leaves a card that is there as it is. UserError as for :func:`find`.
    """
    package = _package()
    with _errors(Place(repository, branch), True, "written to"):
        api = package.HfApi(token=token)
        full = api.create_repo(repository, private=private, exist_ok=True).repo_id
        ignored = None
        if keep_card and api.file_exists(full, CARD, revision=branch):
            ignored = [CARD]
        done = api.upload_folder(
            repo_id=full, folder_path=folder, commit_message=message, revision=branch, create_pr=create_pr,
            ignore_patterns=ignored,
        )  # fmt: skip
    return str(getattr(done, "commit_url", done))


def _package():
    try:
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError:
        raise UserError(
            'the Hugging Face Hub needs the package huggingface_hub; run: pip install "stdc-fast[hub]"'
        ) from None
    return huggingface_hub


@contextlib.contextmanager
def _errors(place: Place, fetch: bool, what: str = "read") -> Iterator[None]:
    """Turn what the package raises into a UserError that names the place."""
    package = _package()
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        above = type(error) is ValueError and "above error" in str(error)
        cause = (above and error.__cause__) or error
        said = _said(package, cause, place, fetch, what)
        if said is None:
            raise
        raise UserError(f"{place}: {said}") from None


def _said(package, error: BaseException, place: Place, fetch: bool, what: str) -> str | None:
    """What an exception of the package means, and what to do; None for what is no concern of users."""
    errors, hub = package.errors, package.constants.ENDPOINT
    log_in = 'log in ("hf auth login"), or give token='
    match error:
        case errors.LocalTokenNotFoundError():
            return f"there is no token on this machine; {log_in}"
        case errors.GatedRepoError():
            return f"is gated; accept its terms on {hub}/{place.repository}, then {log_in}"
        case errors.RepositoryNotFoundError():
            return f"{hub} has no such repository, or it is private; check the name, or {log_in}"
        case errors.RevisionNotFoundError():
            return f"the repository has no revision {place.revision or 'main'}"
        case errors.LocalEntryNotFoundError():
            cause, missing = error.__cause__, "and it is not in the cache of this machine"
            if cause is not None and _of_connection(cause, errors):
                return f"{hub} can not be reached ({_line(cause)}), {missing}"
            if isinstance(cause, errors.HfHubHTTPError):
                return f"can not be {what} ({_line(cause)}), {missing}"
            remedy = "downloads are forbidden, by local_files_only or HF_HUB_OFFLINE"
            if not fetch:
                remedy = "load it with download=True"
            elif download.offline():
                remedy = "STDC_FAST_OFFLINE forbids the download"
            return f"is not in the cache of this machine; {remedy}"
        case errors.EntryNotFoundError():
            return "the repository has no such file"
        case errors.OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE forbids it"
        case errors.HfHubHTTPError():
            status = getattr(error.response, "status_code", None)
            remedy = f"; {log_in}" if status in (401, 403) else ""
            return f"can not be {what} ({_line(error)}){remedy}"
    if _of_connection(error, errors):
        return f"{hub} can not be reached ({_line(error)})"
    return f"can not be {what} ({_line(error)})" if isinstance(error, (OSError, ValueError)) else None


def _of_connection(error: BaseException, errors) -> bool:
    known = type(error).__module__.split(".")[0] in _CONNECTIONS or isinstance(error, ConnectionError)
    return known and not isinstance(error, errors.OfflineModeIsEnabled)


def _line(error: BaseException) -> str:
    """A message in one line: of a request its first one, since a number and the address follow."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if type(error) is ValueError or lines[0].endswith(":"):  # "Bad request:", and then what is
        return " ".join(lines)[:300]
    return lines[0]
