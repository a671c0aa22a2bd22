"""The objects that people made of images, on disk: they are there after a reload, and after the server's end."""

from pathlib import Path

from sam_jax.atomic import written_whole
from sam_jax.images.run_lengths import from_text
from sam_jax.images.size import Size
from sam_jax.page.gallery import StoredImage
from sam_jax.page.messages import SavedObject, SavedObjects


class Shelf:
    """A JSON file for each image that has objects."""

    def __init__(self, folder: Path) -> None:
        """Use a folder, made where missing."""
        self._folder = folder

    def read(self, image: StoredImage) -> list[SavedObject]:
        """Return the objects of an image."""
        file = self._file(image)
        return SavedObjects.model_validate_json(file.read_bytes()).objects if file.exists() else []

    def has(self, image: StoredImage) -> bool:
        """Return whether an image has objects."""
        return self._file(image).exists()

    def write(self, image: StoredImage, saved: SavedObjects, size: Size) -> None:
        """Keep the objects of an image in the place of those before.

        Args:
          image: the image.
          saved: its objects.
          size: height and width of the image.

        Raises:
          ValueError: for a mask that is none of this size.
        """
        for one in saved.objects:
            for mask in [*one.masks, *([one.mask] if one.mask else [])]:
                if tuple(mask.size) != size:
                    raise ValueError(f"A mask of {mask.size} is not of the image, which is {list(size)}.")
                from_text(mask.counts, size)
        if saved.objects:
            with written_whole(self._file(image), overwrite=True) as path:
                path.write_text(saved.model_dump_json(), "utf-8")
        else:
            self._file(image).unlink(missing_ok=True)

    def _file(self, image: StoredImage) -> Path:
        return self._folder / f"{image.id}.json"
