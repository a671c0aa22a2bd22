"""Checkpoints by name: published ones, of which is known where and what they are, and the Hugging Face Hub's."""

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import pooch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TimeRemainingColumn, TransferSpeedColumn

from sam_jax.convert.hub import Repository, fetch_repository
from sam_jax.errors import CheckpointError


@dataclasses.dataclass(frozen=True)
class Published:
    """A checkpoint file on a public server.

    Attributes:
      url: where its owners keep it; the last part is the file's name.
      digest: of the whole file: `sha256:` or `md5:`, and the hexadecimal digits.
      size: in bytes, where it is known.
    """

    url: str
    digest: str
    size: int | None = None

    @property
    def file(self) -> str:
        """The file's name."""
        return self.url.rpartition("/")[2]


PUBLISHED = {
    "sam_vit_b": Published(
        url="https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth",
        digest="sha256:ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        size=375_042_383,
    ),
    "sam_vit_l": Published(
        url="https://dl.fbaipublicfiles.com/segment_anything/sam_vit_l_0b3195.pth",
        digest="sha256:3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        size=1_249_524_607,
    ),
    "sam_vit_h": Published(
        url="https://dl.fbaipublicfiles.com/segment_anything/sam_vit_h_4b8939.pth",
        digest="sha256:a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        size=2_564_550_879,
    ),
    "mobile_sam": Published(
        url="https://raw.githubusercontent.com/ChaoningZhang/MobileSAM/master/weights/mobile_sam.pt",
        digest="sha256:6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        size=40_728_226,
    ),
    "sam2_hiera_tiny": Published(
        url="https://dl.fbaipublicfiles.com/segment_anything_2/072824/sam2_hiera_tiny.pt",
        digest="sha256:65b50056e05bcb13694174f51bb6da89c894b57b75ccdf0ba6352c597c5d1125",
    ),
    "sam2_hiera_small": Published(
        url="https://dl.fbaipublicfiles.com/segment_anything_2/072824/sam2_hiera_small.pt",
        digest="sha256:95949964d4e548409021d47b22712d5f1abf2564cc0c3c765ba599a24ac7dce3",
    ),
    "sam2_hiera_base_plus": Published(
        url="https://dl.fbaipublicfiles.com/segment_anything_2/072824/sam2_hiera_base_plus.pt",
        digest="sha256:d0bb7f236400a49669ffdd1be617959a8b1d1065081789d7bbff88eded3a8071",
    ),
    "sam2_hiera_large": Published(
        url="https://dl.fbaipublicfiles.com/segment_anything_2/072824/sam2_hiera_large.pt",
        digest="sha256:7442e4e9b732a508f80e141e7c2913437a3610ee0c77381a66658c3a445df87b",
    ),
    "sam2.1_hiera_tiny": Published(
        url="https://dl.fbaipublicfiles.com/segment_anything_2/092824/sam2.1_hiera_tiny.pt",
        digest="sha256:7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69",
    ),
    "sam2.1_hiera_small": Published(
        url="https://dl.fbaipublicfiles.com/segment_anything_2/092824/sam2.1_hiera_small.pt",
        digest="sha256:6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38",
    ),
    "sam2.1_hiera_base_plus": Published(
        url="https://dl.fbaipublicfiles.com/segment_anything_2/092824/sam2.1_hiera_base_plus.pt",
        digest="sha256:a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5",
    ),
    "sam2.1_hiera_large": Published(
        url="https://dl.fbaipublicfiles.com/segment_anything_2/092824/sam2.1_hiera_large.pt",
        digest="sha256:2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318",
    ),
    "sam_hq_vit_b": Published(
        url="https://huggingface.co/lkeab/hq-sam/resolve/main/sam_hq_vit_b.pth",
        digest="md5:c6b8953247bcfdc8bb8ef91e36a6cacc",
    ),
    "sam_hq_vit_l": Published(
        url="https://huggingface.co/lkeab/hq-sam/resolve/main/sam_hq_vit_l.pth",
        digest="md5:08947267966e4264fb39523eccc33f86",
    ),
    "sam_hq_vit_h": Published(
        url="https://huggingface.co/lkeab/hq-sam/resolve/main/sam_hq_vit_h.pth",
        digest="md5:3560f6b6a5a6edacd814a1325c39640a",
    ),
}
"""The checkpoints that can be asked for by name. The digests are those that several independent projects list."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint on this machine.

    Attributes:
      path: of its file or folder.
      name: of its file or folder, or of the repository that it was downloaded from, with the revision.
      commit: the hash of the repository's commit; None for what is from elsewhere.
    """

    path: Path
    name: str
    commit: str | None = None


def locate(checkpoint: str | os.PathLike[str]) -> Source:
    """Find a checkpoint: what is there under that name, else a published one or a repository's, downloaded first.

    Args:
      checkpoint: a path, a name of `PUBLISHED`, or a repository of the Hugging Face Hub: `owner/name` or
        `owner/name@revision`.

    Raises:
      CheckpointError: if it is none of them, or the download fails.
    """
    path = Path(checkpoint).expanduser()
    name = str(checkpoint)
    if not path.exists():
        if repository := Repository.parse(name):
            found, commit = fetch_repository(repository)
            return Source(found, str(repository), commit)
        if name not in PUBLISHED:
            raise CheckpointError(
                f"There is no {path}, and no published checkpoint of that name ({', '.join(PUBLISHED)})."
            )
        path = fetch(PUBLISHED[name])
    return Source(path, path.resolve().name)


def fetch(checkpoint: Published, folder: Path | None = None) -> Path:
    """Return the local path of a published checkpoint, downloading it unless a whole copy is there.

    The file is written under a temporary name and gets its own only after its digest has been checked.

    Args:
      checkpoint: one of `PUBLISHED`.
      folder: where to keep it; by default the user's cache folder for this package.

    Raises:
      CheckpointError: if the server cannot be reached, the connection breaks, or the file is not the published one.
    """
    download: Any = functools.partial(_download, checkpoint)  # pooch's annotation of a downloader fits not even its own
    try:
        path = pooch.retrieve(
            checkpoint.url,
            known_hash=checkpoint.digest,
            fname=checkpoint.file,
            path=folder or pooch.os_cache("sam-jax"),
            downloader=download,
        )
    except (OSError, ValueError) as error:  # every error of requests is an OSError, a wrong hash is a ValueError
        raise CheckpointError(f"Could not download {checkpoint.file} from {checkpoint.url}: {error}") from error
    return Path(path)


def _download(checkpoint: Published, url: str, output: str, _: object) -> None:
    """Be the downloader that pooch calls when no whole copy is there."""
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar: Any = _Bar(progress, progress.add_task(checkpoint.file, total=checkpoint.size))
        pooch.HTTPDownloader(progressbar=bar, chunk_size=2**20)(url, output, None)


@dataclasses.dataclass
class _Bar:
    """Draws with rich what pooch tells a progress bar in tqdm's words."""

    progress: Progress
    task: TaskID
    total: int = 0  # set by pooch: the size by the server, or 0

    def update(self, count: int) -> None:
        if self.total and self.progress.tasks[self.task].total is None:
            self.progress.update(self.task, total=self.total)
        self.progress.advance(self.task, count)

    def reset(self) -> None:
        self.progress.reset(self.task)

    def close(self) -> None:
        """Nothing to do: the progress ends with its block, whether the download has worked or not."""
