"""The images that a page shows: files that were named when it was started, and uploads.

A request names an image by its id, which is looked up here. No name that comes over the network is ever a path.
"""

import contextlib
import dataclasses
import hashlib
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import tifffile
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image

from sam_jax.images.read import read_header, read_image
from sam_jax.images.size import Size

MOST_BYTES = 64 << 20
"""Of an uploaded file."""

MOST_PIXELS = 50_000_000
"""Of an image."""

MOST_UPLOADS = 200
"""That are kept at the same time."""

MOST_UPLOADED_BYTES = 2 << 30
"""Of all uploads together."""

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
"""That are taken from strangers. PIL reads more, some of them by other programs."""

_decoding = threading.Semaphore(2)  # so many images exist as pixels at once


class FullError(Exception):
    """There is no room for another upload."""


@dataclasses.dataclass(frozen=True)
class StoredImage:
    """An image file.

    Attributes:
      id: 16 hexadecimal digits.
      name: what people call it; never a path.
      path: where it lies.
      uploaded: whether it came over the network, so that it can be removed.
    """

    id: str
    name: str
    path: Path
    uploaded: bool = False

    def size(self) -> Size:
        """Return height and width without reading the pixels.

        Raises:
          ValueError: if the file is no image, or has too many pixels.
        """
        with self._named():
            return _checked_size(self.path)

    def pixels(self) -> UInt8[ndarray, "height width 3"]:
        """Return the pixels as RGB. Of all threads, two read at a time.

        Raises:
          ValueError: if the file cannot be read, or has too many pixels.
        """
        with _decoding, self._named():
            _checked_size(self.path)
            return read_image(self.path)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Say the name in errors, and not where the file lies."""
        try:
            yield
        except ValueError as error:
            raise ValueError(str(error).replace(str(self.path), self.name)) from error


class Gallery:
    """Images by id, in the order in which they came.

    Attributes:
      uploads: the folder for uploaded files.
    """

    def __init__(self, files: Iterable[Path], uploads: Path) -> None:
        """List the files.

        Args:
          files: image files.
          uploads: an empty folder for uploaded files.
        """
        self.uploads = uploads
        self._lock = threading.Lock()
        self._images = {image.id: image for image in map(_of_file, files)}

    def __getitem__(self, image_id: str) -> StoredImage:
        """Return the image with an id.

        Raises:
          KeyError: if there is none.
        """
        return self._images[image_id]

    def images(self) -> list[StoredImage]:
        """Return all images."""
        with self._lock:
            return list(self._images.values())

    def add(self, name: str, file: Path) -> StoredImage:
        """Take an uploaded file into the folder of uploads. The same file again is the same image.

        Args:
          name: what people call it.
          file: the file, which is moved.

        Raises:
          ValueError: if it is no image of `FORMATS`, or too large.
          FullError: if there are too many uploads.
        """
        with file.open("rb") as stream:
            image_id = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
        # The reader goes by the ending.
        file = file.rename(file.with_name(f"{image_id}{_ending_of_format(file)}"))
        image = StoredImage(image_id, name, self.uploads / file.name, uploaded=True)
        dataclasses.replace(image, path=file).pixels()  # so that a damaged file is refused at once
        with self._lock:
            if image_id in self._images:
                return self._images[image_id]
            kept = [one.path.stat().st_size for one in self._images.values() if one.uploaded]
            if len(kept) >= MOST_UPLOADS or sum(kept) + file.stat().st_size > MOST_UPLOADED_BYTES:
                raise FullError(f"There are {len(kept)} uploaded images already: remove some of them first.")
            file.rename(image.path)
            self._images[image_id] = image
        return image

    def remove(self, image_id: str) -> None:
        """Remove an uploaded image.

        Raises:
          KeyError: if there is none.
          ValueError: if it is a file that the server was started with.
        """
        with self._lock:
            image = self._images[image_id]
            if not image.uploaded:
                raise ValueError(f"{image.name} was not uploaded, so it is not removed.")
            del self._images[image_id]
            image.path.unlink(missing_ok=True)


def _of_file(path: Path) -> StoredImage:
    """The id is that of the file as it is now: what was found in it is not mistaken for that of a changed file."""
    path, about = path.resolve(), path.stat()
    identity = f"{path}\0{about.st_size}\0{about.st_mtime_ns}"
    return StoredImage(hashlib.sha256(identity.encode()).hexdigest()[:16], path.name, path)


def _ending_of_format(file: Path) -> str:
    try:
        with Image.open(file, formats=FORMATS) as image:
            kind = image.format
    except Exception as error:  # whatever a decoder raises
        with file.open("rb") as stream:
            start = stream.read(4)
        if start not in (b"II*\0", b"MM\0*"):
            raise ValueError(f"The file is no image of a known kind ({', '.join(FORMATS)}).") from error
        kind = "TIFF"  # of more than 8 bits, which tifffile reads
    return ".tif" if kind == "TIFF" else f".{kind}".lower()


def _checked_size(path: Path) -> Size:
    height, width = size = read_header(path).turned_size
    values = height * width
    if path.suffix == ".tif":
        with tifffile.TiffFile(path) as file:
            values = max(values, file.series[0].size // 4)
    if values > MOST_PIXELS:
        raise ValueError(f"The image has {height} x {width} pixels; at most {MOST_PIXELS:,} are taken.")
    return size
