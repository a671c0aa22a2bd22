"""Repositories of the Hugging Face Hub: which of their files are a checkpoint, and fetching those."""

import fnmatch
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from sam_jax.convert.reader import FOLDER_FILES
from sam_jax.errors import CheckpointError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_NAME = re.compile(r"([a-z0-9][\w.-]*/[a-z0-9][\w.-]*)(?:@(\w[\w./-]*))?", re.ASCII | re.IGNORECASE)
_DEFAULT_REVISION = "main"
_SETTINGS = "config.json"
_SAFETENSORS = (".safetensors",)
_PICKLES = (".pt", ".pth", ".bin")


class Repository(NamedTuple):
    """A repository at a revision: a branch, a tag or the hash of a commit."""

    name: str
    revision: str

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}"

    @classmethod
    def parse(cls, text: str) -> "Repository | None":
        """Read `owner/name` or `owner/name@revision`; None for what cannot be one, such as the path of a file."""
        match = _NAME.fullmatch(text)
        if match is None or ".." in text or text.endswith(_SAFETENSORS + _PICKLES):
            return None
        return cls(match[1], match[2] or _DEFAULT_REVISION)


def fetch_repository(repository: Repository) -> tuple[Path, str]:
    """Return the path of a repository's checkpoint on this machine, downloaded where missing, and its commit's hash.

    The files lie in the cache that programs share by `huggingface_hub`, where a file has its name only when it is
    whole. Where the Hub cannot be reached, what is in the cache is taken.

    Raises:
      CheckpointError: if there is no such repository or revision, or it may not be read; if it can be neither reached
        nor found in the cache; if the download fails; or if the repository has no checkpoint, or several.
    """
    try:
        names = _listed(repository)
    except Exception as error:  # without a connection, an error of the HTTP library, which has changed over the years
        if _is_refusal(error):
            raise CheckpointError(_explained(repository, error)) from error
        snapshot = _cached(repository)
        weights = _weights(repository, _names_in(snapshot)) if snapshot else None
        if snapshot is None or weights is None:
            raise CheckpointError(
                f"There is no {repository.name} on this machine, and the Hugging Face Hub cannot be reached: "
                f"{_first_line(error)}"
            ) from error
    else:
        weights = _weights(repository, names)
        if weights is None:
            raise CheckpointError(
                f"{repository} of the Hugging Face Hub has no weights: none of its {len(names)} files ends in "
                f"{', '.join(_SAFETENSORS + _PICKLES)}."
            )
        try:
            snapshot = _download(repository, _needed(weights, names))
        except Exception as error:
            raise CheckpointError(_explained(repository, error)) from error
    return snapshot if weights in FOLDER_FILES else snapshot / weights, snapshot.name


# huggingface_hub is imported where it is used: most checkpoints are not from the Hub.


def _hub() -> "HfApi":
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"))


def _listed(repository: Repository) -> list[str]:
    from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT

    found = _hub().model_info(repository.name, revision=repository.revision, timeout=HF_HUB_ETAG_TIMEOUT)
    return [file.rfilename for file in found.siblings or ()]


def _download(repository: Repository, names: Sequence[str]) -> Path:
    """Return the folder of the commit that the revision is now, with these files in it."""
    hub, (first, *others) = _hub(), names
    path = Path(hub.hf_hub_download(repository.name, first, revision=repository.revision))
    snapshot = path.parents[first.count("/")]
    for name in others:  # of the same commit, whatever the revision becomes in the meantime
        hub.hf_hub_download(repository.name, name, revision=snapshot.name)
    return snapshot


def _cached(repository: Repository) -> Path | None:
    """Return the folder of the commit that the revision was last, or None."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:  # no pattern: the folder is wanted, whatever is in it
        folder = _hub().snapshot_download(
            repository.name, revision=repository.revision, local_files_only=True, allow_patterns=[]
        )
    except LocalEntryNotFoundError:
        return None
    return Path(folder)


def _names_in(snapshot: Path) -> list[str]:
    return sorted(path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file())


def _weights(repository: Repository, names: Sequence[str]) -> str | None:
    """Choose the file of weights, or the index of several; None where there is none.

    Raises:
      CheckpointError: if several could be meant.
    """
    for name in FOLDER_FILES:
        if name in names:
            return name
    for suffixes in (_SAFETENSORS, _PICKLES):
        found = [name for name in names if PurePosixPath(name).suffix in suffixes]
        if len(found) > 1:
            raise CheckpointError(
                f"{repository} of the Hugging Face Hub has several checkpoints ({', '.join(found)}): download the one "
                "that you mean, and give its path."
            )
        if found:
            return found[0]
    return None


def _needed(weights: str, names: Sequence[str]) -> list[str]:
    """Return what to download for a file of weights, the weights last: where they are, the rest is."""
    if weights not in FOLDER_FILES:
        return [weights]
    settings = [name for name in names if name == _SETTINGS]
    stem, suffix, *index = weights.split(".")
    parts = fnmatch.filter(names, f"{stem}-*.{suffix}") if index else []
    return [*settings, *parts, weights]


def _is_refusal(error: Exception) -> bool:
    """Whether the Hub has answered, and says no, or would say so of such a name."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    return isinstance(error, HFValidationError) or (
        isinstance(error, HfHubHTTPError) and error.response.status_code < 500
    )


def _explained(repository: Repository, error: Exception) -> str:
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):  # which is a RepositoryNotFoundError, too
        return (
            f"{repository.name} is open only to whom its owners let in: ask for access on its page of the Hugging Face "
            "Hub, then sign in with `hf auth login`."
        )
    if isinstance(error, RepositoryNotFoundError | HFValidationError):
        return (
            f"There is no {repository.name} on this machine, and no such repository on the Hugging Face Hub; if it is "
            "a private one, sign in with `hf auth login`."
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{repository.name} of the Hugging Face Hub has no revision {repository.revision}."
    return f"Could not download {repository} from the Hugging Face Hub: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]
