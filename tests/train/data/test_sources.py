"""Sources: COCO JSON as pycocotools reads it, label images, embeddings; and what bad data is told."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

from sam_jax.files.embeddings import EmbeddingStore
from sam_jax.files.manifest import Provenance
from sam_jax.images.pixels import EncodedImage
from sam_jax.train.data.sources import (
    CocoImages,
    DrawnScenes,
    Embedded,
    LabelFolder,
    Part,
    embed,
    open_source,
    split,
)

SIZE = (40, 60)
IMAGE = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
MASK = np.zeros(SIZE, bool)
MASK[5:20, 8:30] = True
SQUARE = [10.0, 10.0, 30.5, 12.0, 25.0, 33.0, 9.0, 30.0]


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed RLE: down the columns, background first."""
    flat = np.concatenate([[False], mask.T.ravel()])
    edges = np.flatnonzero(np.diff(flat))
    return np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()


def compressed(mask: np.ndarray) -> dict[str, Any]:
    encoded: Any = coco_masks.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(SIZE), "counts": encoded["counts"].decode()}


def annotation(number: int, segmentation: Any, **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": 7, "category_id": 1, "iscrowd": 0, "segmentation": segmentation} | more


def write_coco(folder: Path, annotations: list[dict[str, Any]], **image: Any) -> Path:
    """A folder with `images/a.png` and `annotations.json`."""
    (folder / "images").mkdir(exist_ok=True)
    Image.fromarray(IMAGE).save(folder / "images" / "a.png")
    images = [{"id": 7, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]} | image]
    path = folder / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Three images; the label of the last is background alone."""
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for name, values in {"a": (3, 200), "b": (1, 2), "c": (0, 0)}.items():
        label = np.zeros(SIZE, np.uint8)
        label[:10], label[30:, 50:] = values
        Image.fromarray(IMAGE).save(tmp_path / "images" / f"{name}.png")
        Image.fromarray(label).save(tmp_path / "labels" / f"{name}.png")
    return tmp_path


def test_coco_masks_are_those_of_pycocotools(tmp_path: Path) -> None:
    segmentations = [
        [SQUARE],
        [SQUARE, [40.0, 2.0, 58.0, 2.0, 50.0, 20.0]],
        {"size": list(SIZE), "counts": run_lengths(MASK)},
        compressed(MASK),
    ]
    annotations = [annotation(i, segmentation) for i, segmentation in enumerate(segmentations)]
    path = write_coco(tmp_path, [*annotations, annotation(9, compressed(~MASK), iscrowd=1)])
    example = open_source(tmp_path)[0]
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO(path)
    for mask, wanted in zip(example.masks, annotations, strict=True):
        np.testing.assert_array_equal(mask, reference.annToMask(wanted).astype(bool))
    np.testing.assert_array_equal(example.masks[2:], [MASK, MASK])
    np.testing.assert_array_equal(example.image, IMAGE)
    assert (example.name, example.original_size) == ("a.png", SIZE)


def test_coco_images_without_objects_are_left_out(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [annotation(1, [SQUARE])])
    content = json.loads(path.read_text())
    content["images"].append({"id": 8, "file_name": "gone.png", "height": 5, "width": 5})
    path.write_text(json.dumps(content))
    assert len(open_source(path)) == 1


BAD_ANNOTATIONS = {
    "no segmentation": (annotation(4, []), "has no objects: 1 annotations without an outline"),
    "two points": (annotation(4, [[1, 2, 3, 4]]), "has no objects: 1 annotations without an outline"),
    "odd number": (annotation(4, [SQUARE[:7]]), "annotation 4 must have polygons"),
    "no image": (annotation(4, [SQUARE], image_id=3), "annotation 4 is of image 3, which is not in the file"),
    "size": (
        annotation(4, {"size": [2, 3], "counts": [6]}),
        r"annotation 4 has RLE of size \[2, 3\], but .*\[40, 60\]",
    ),
    "counts": (annotation(4, {"size": list(SIZE), "counts": [6]}), "annotation 4 has RLE whose counts do not add up"),
    "crowd alone": (annotation(4, compressed(MASK), iscrowd=1), "annotations.json has no objects"),
}


@pytest.mark.parametrize("name", BAD_ANNOTATIONS)
def test_a_bad_annotation_is_named(tmp_path: Path, name: str) -> None:
    wrong, message = BAD_ANNOTATIONS[name]
    write_coco(tmp_path, [wrong])
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ({"file_name": "b.png"}, r"image 7 must be a file in .*images, got .*b\.png"),
        ({"file_name": "../annotations.json"}, "image 7 must be a file in .*images, got"),
        ({"height": 41}, "a.png is 40 pixels high and 60 wide, but .* says 41 pixels high and 60 wide"),
    ],
)
def test_a_bad_image_is_named(tmp_path: Path, image: dict[str, Any], message: str) -> None:
    write_coco(tmp_path, [annotation(4, [SQUARE])], **image)
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path)


def test_what_is_no_coco_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for text, message in {
        "{": "is not JSON",
        "[]": "is not COCO JSON",
        '{"images": [{}], "annotations": []}': "has no",
    }.items():
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"x\.json.* {message}"):
            CocoImages(path, tmp_path)


def test_what_is_no_data_set_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no data set: it must be a COCO JSON file, or a folder"):
        open_source(tmp_path)


def test_each_value_of_a_label_is_an_object(labels: Path) -> None:
    source = open_source(labels)
    assert [source[i].name for i in range(len(source))] == ["a.png", "b.png"]
    first = source[0]
    assert first.masks.sum((1, 2)).tolist() == [600, 100]
    assert first.masks[0, :10].all()
    np.testing.assert_array_equal(first.image, IMAGE)


def test_labels_of_16_bits_and_palettes(labels: Path) -> None:
    values = np.zeros(SIZE, np.uint16)
    values[:10], values[30:] = 300, 40_000
    Image.fromarray(values).save(labels / "labels" / "a.png")
    palette = Image.fromarray(values.astype(bool).astype(np.uint8) * 2, "L").convert("P")
    palette.putpalette([0, 0, 0, 9, 9, 9, 255, 0, 0])
    palette.save(labels / "labels" / "b.png")
    first, second = open_source(labels)[0], open_source(labels)[1]
    assert first.masks.sum((1, 2)).tolist() == [600, 600]
    assert second.masks.sum((1, 2)).tolist() == [1200]


def test_bad_labels_are_named(labels: Path) -> None:
    label = labels / "labels" / "a.png"
    Image.fromarray(IMAGE).save(label)
    with pytest.raises(ValueError, match=r"labels/a\.png must have one channel, .* got mode RGB"):
        LabelFolder(labels)
    Image.new("L", (60, 41)).save(label)
    with pytest.raises(ValueError, match=r"labels/a\.png is 41 pixels high .*images/a\.png is 40 pixels high"):
        LabelFolder(labels)
    label.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"labels/a\.png cannot be read as an image"):
        LabelFolder(labels)
    label.unlink()
    with pytest.raises(ValueError, match=r"images/a\.png has no label named a"):
        LabelFolder(labels)


def test_a_folder_without_objects_is_an_error(labels: Path) -> None:
    for path in (labels / "labels").iterdir():
        Image.new("L", SIZE[::-1]).save(path)
    with pytest.raises(ValueError, match=r"has no objects: its 3 labels are 0 \(background\) everywhere"):
        LabelFolder(labels)


def test_embeddings_are_computed_once_and_read_back(tmp_path: Path) -> None:
    scenes, calls = DrawnScenes(3), []
    store = EmbeddingStore.create(tmp_path / "store", {"embedding": (2, 3, 4)}, (128, 128), "float32", Provenance())

    def encode(image: np.ndarray) -> EncodedImage:
        calls.append(image)
        return EncodedImage(np.full((2, 3, 4), image.mean(), np.float32), (128, 128), (128, 128))

    assert embed(scenes, store, encode) == 3
    assert embed(scenes, store, encode) == 0
    assert len(calls) == 3
    example = Embedded(scenes, store)[1]
    np.testing.assert_array_equal(example.masks, scenes[1].masks)
    assert example.encoded is not None
    assert (example.encoded.input_size, example.encoded.original_size) == ((128, 128), (128, 128))
    np.testing.assert_array_equal(example.encoded.embedding, jax.numpy.full((2, 3, 4), scenes[1].image.mean()))
    with pytest.raises(ValueError, match=r"is 64 pixels high and 96 wide, but .* is of an image 128 pixels"):
        Embedded(DrawnScenes(3, size=(64, 96)), store)[1]


def test_a_split_is_by_image_and_the_same_every_time() -> None:
    scenes = DrawnScenes(10)
    train, held_out = split(scenes, 0.2, seed=3)
    assert (len(train), len(held_out)) == (8, 2)
    names = [part[i].name for part in (train, held_out) for i in range(len(part))]
    assert sorted(names) == sorted(scenes[i].name for i in range(10))
    assert split(scenes, 0.2, seed=3)[1].indices == held_out.indices
    assert any(split(scenes, 0.2, seed=seed)[1].indices != held_out.indices for seed in range(3))
    assert [len(part) for part in split(DrawnScenes(3), 0.01, seed=0)] == [2, 1]
    assert [len(part) for part in split(DrawnScenes(3), 0.99, seed=0)] == [1, 2]
    with pytest.raises(ValueError, match="There is 1 image: to hold out some, there must be 2"):
        split(DrawnScenes(1), 0.5, seed=0)


def test_a_part_can_have_fewer_objects() -> None:
    scenes = DrawnScenes(2)
    part = Part(scenes, [1], objects=2)
    np.testing.assert_array_equal(part[0].masks, part[0].masks)
    assert len(part[0].masks) == 2 < len(scenes[1].masks)
    assert all((mask == scenes[1].masks).all((1, 2)).any() for mask in part[0].masks)
