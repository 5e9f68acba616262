"""Files of the Hugging Face Hub: those that an earlier download left, else from the network."""

from __future__ import annotations

import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from acdc_cli.errors import AcdcError

FAILURES = (HfHubHTTPError, OSError, ValueError)
"""The client's own errors, and those of its network library."""


def file_of(repository: str, file: str, error: type[AcdcError]) -> Path:
    """A file of OWNER/NAME or OWNER/NAME@REVISION. Raises `error` if it cannot be fetched."""
    name, _, revision = repository.partition("@")
    if cached := kept(name, file, revision or None):
        return cached
    try:
        require_network()
        return download(name, file, revision or None)
    except FAILURES as cause:
        raise error(unreachable(name, cause)) from cause


def kept(repository: str, file: str, revision: str | None = None) -> Path | None:
    """What an earlier download left in the client's cache."""
    with suppress(LocalEntryNotFoundError, ValueError):
        return download(repository, file, revision, local=True)
    return None


def download(repository: str, file: str, revision: str | None = None, local: bool = False) -> Path:
    return Path(huggingface_hub.hf_hub_download(repository, file, revision=revision, local_files_only=local))


def require_network() -> None:
    """Raises OSError where the hub cannot be reached: the client itself would try for more than a minute."""
    request = urllib.request.Request(huggingface_hub.constants.ENDPOINT, method="HEAD")
    # an answer of any kind is a network
    with suppress(urllib.error.HTTPError):
        urllib.request.urlopen(request, timeout=10).close()


def unreachable(repository: str, error: Exception) -> str:
    said = (str(error).splitlines() or [type(error).__name__])[0][:150].rstrip(". ")
    return (
        f"{repository} cannot be fetched from the Hugging Face Hub ({said}); download it where there is a network, "
        "`hf download`, and name its folder"
    )
