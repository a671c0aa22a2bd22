"""Label images as tools write them: names, types, one file per object; what is doubtful is told."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from whole import assert_masks_or_one_error

from sam_jax.images.read import Reading
from sam_jax.train.data.labels import LabelFolder
from sam_jax.train.data.sources import open_source

SIZE = (40, 60)
IMAGE = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
LABEL = np.zeros(SIZE, np.int64)
LABEL[:10], LABEL[30:, 50:] = 1, 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    Image.fromarray(IMAGE).save(tmp_path / "images" / "a.png")
    return tmp_path


def write(path: Path, values: np.ndarray) -> None:
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix in (".tif", ".tiff"):
        tifffile.imwrite(path, values)
    else:
        Image.fromarray(values).save(path)


@pytest.mark.parametrize("suffix", [".tif", ".tiff", ".npy"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.uint32, np.int64])
def test_labels_of_every_whole_type(folder: Path, suffix: str, dtype: Any) -> None:
    write(folder / "labels" / f"a{suffix}", (LABEL * (100 if np.dtype(dtype).itemsize > 1 else 1)).astype(dtype))
    np.testing.assert_array_equal(open_source(folder)[0].masks, [LABEL == 1, LABEL == 2])


@pytest.mark.parametrize("suffix", [".tif", ".npy"])
def test_a_label_of_bools_is_one_object(folder: Path, suffix: str) -> None:
    write(folder / "labels" / f"a{suffix}", LABEL == 1)
    np.testing.assert_array_equal(open_source(folder)[0].masks, [LABEL == 1])


@pytest.mark.parametrize("name", ["a_mask.png", "a_masks.png", "a_label.tif", "a_labels.npy", "a.PNG"])
def test_names_of_labels(folder: Path, name: str) -> None:
    write(folder / "labels" / name, LABEL.astype(np.uint8))
    assert len(open_source(folder)[0].masks) == 2


@pytest.mark.parametrize("place", ["masks/a.tif", "masks/a_mask.png", "images/a_masks.tif", "images/a_label.npy"])
def test_places_of_labels(folder: Path, place: str) -> None:
    (folder / "labels").rmdir()
    (folder / "masks").mkdir()
    if not place.startswith("masks"):
        (folder / "masks").rmdir()
    write(folder / place, LABEL.astype(np.uint16))
    source = open_source(folder)
    assert [source.file(i).name for i in range(len(source))] == ["a.png"]
    np.testing.assert_array_equal(source[0].masks, [LABEL == 1, LABEL == 2])


def test_labels_beside_images_in_one_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.fromarray(IMAGE).save(tmp_path / f"{name}.png")
        write(tmp_path / f"{name}_mask.tif", LABEL.astype(np.uint16))
    (tmp_path / "notes.txt").write_text("x")
    source = open_source(tmp_path)
    assert [source.file(i).name for i in range(len(source))] == ["a.png", "b.png"]
    (tmp_path / "b_mask.tif").unlink()
    with pytest.raises(ValueError, match=r"b\.png has no label named b"):
        open_source(tmp_path)
    Image.fromarray(IMAGE).save(tmp_path / "b_mask.jpg")
    with pytest.raises(ValueError, match=r"b_mask\.jpg is no label: JPG changes values"):
        open_source(tmp_path)


def test_two_folders_of_labels_are_refused(folder: Path) -> None:
    (folder / "masks").mkdir()
    with pytest.raises(ValueError, match="has labels/ and masks/"):
        open_source(folder)


def test_a_page_of_image_and_label(folder: Path) -> None:
    pages = np.stack([np.zeros(SIZE, np.uint16), LABEL.astype(np.uint16)])
    (folder / "images" / "a.png").unlink()
    for place, values in {"images": 1000 * pages, "labels": pages}.items():
        tifffile.imwrite(folder / place / "a.tif", values, photometric="minisblack")
    with pytest.raises(ValueError, match=r"a\.tif must be one label, got 2 pages; --page chooses one"):
        open_source(folder)
    source = open_source(folder, reading=Reading(page=2))
    np.testing.assert_array_equal(source[0].masks, [LABEL == 1, LABEL == 2])
    np.testing.assert_array_equal(source[0].image[..., 0], (127.5 * LABEL + 0.5).astype(np.uint8))
    with pytest.raises(ValueError, match=r"a\.tif has 2 pages, and no page 3"):
        open_source(folder, reading=Reading(page=3))


def test_images_left_out_and_the_rule_for_ranges_are_told(folder: Path) -> None:
    write(folder / "labels" / "a.png", LABEL.astype(np.uint8))
    Image.fromarray(IMAGE).save(folder / "images" / "b.png")
    write(folder / "labels" / "b.png", np.zeros(SIZE, np.uint8))
    source = open_source(folder, reading=Reading(range="channel"))
    assert source.notes == (
        "Left out 1 images without an object, such as b.png.",
        "Range of all images: the smallest value of each channel becomes 0 and the largest 255 (--range channel).",
    )


def test_an_image_whose_own_name_ends_in_mask_keeps_its_label(folder: Path) -> None:
    Image.fromarray(IMAGE).save(folder / "images" / "a_mask.png")
    write(folder / "labels" / "a.png", LABEL.astype(np.uint8))
    write(folder / "labels" / "a_mask.png", (LABEL == 1).astype(np.uint8))
    source = open_source(folder)
    assert [len(source[i].masks) for i in range(2)] == [2, 1]


@pytest.mark.parametrize("suffix", ["png", "npy", "tif"])
def test_a_file_for_each_object(folder: Path, suffix: str) -> None:
    (folder / "labels" / "a").mkdir()
    for value in (2, 1, 7):
        write(folder / "labels" / "a" / f"{value}.{suffix}", ((value == LABEL) * 255).astype(np.uint8))
    np.testing.assert_array_equal(open_source(folder)[0].masks, [LABEL == 1, LABEL == 2])  # the third is empty


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a_mask.webp"])
def test_lossy_labels_are_refused_with_the_reason(folder: Path, name: str) -> None:
    Image.fromarray(LABEL.astype(np.uint8)).save(folder / "labels" / name)
    with pytest.raises(
        ValueError, match=rf"{name} is no label: (JPE?G|WEBP) changes values. Save labels as PNG or TIFF"
    ):
        open_source(folder)


@pytest.mark.parametrize("hidden", ["._a.png", ".DS_Store", "._b.tif"])
def test_hidden_files_are_no_labels(folder: Path, hidden: str) -> None:
    write(folder / "labels" / "a.png", LABEL.astype(np.uint8))
    for place in ("images", "labels"):
        (folder / place / hidden).write_bytes(b"\0\5\x16\7")
    assert len(open_source(folder)) == 1


def palette(values: np.ndarray) -> Image.Image:
    image = Image.fromarray(values.astype(np.uint8)).convert("P")
    image.putdata(values.ravel().tolist())
    return image


def test_the_void_of_a_palette_is_no_object(folder: Path) -> None:
    void = np.where(LABEL == 2, 255, LABEL)
    palette(void).save(folder / "labels" / "a.png")
    np.testing.assert_array_equal(open_source(folder)[0].masks, [LABEL == 1])
    palette(np.where(LABEL == 1, 255, 0)).save(folder / "labels" / "a.png")  # nothing else: a mask
    np.testing.assert_array_equal(open_source(folder)[0].masks, [LABEL == 1])
    Image.fromarray(void.astype(np.uint8)).save(folder / "labels" / "a.png")  # grey: a number as any other
    assert len(open_source(folder)[0].masks) == 2


def test_blobs_of_one_value_are_told_and_can_be_split(folder: Path) -> None:
    write(folder / "labels" / "a.png", ((LABEL > 0) * 255).astype(np.uint8))
    source = open_source(folder)
    assert len(source[0].masks) == 1
    assert source.notes[0].startswith("1 labels have one value in several blobs, such as a.png (2). ")
    split = open_source(folder, split_components=True)
    np.testing.assert_array_equal(split[0].masks, [LABEL == 1, LABEL == 2])
    assert split.notes == ()


def test_diagonal_neighbours_are_one_blob(folder: Path) -> None:
    write(folder / "labels" / "a.npy", np.pad(np.eye(20, dtype=bool), ((0, 20), (0, 40))))
    assert len(open_source(folder, split_components=True)[0].masks) == 1


@pytest.mark.parametrize("damage", ["blurred", "resized", "jpeg"])
def test_specks_are_told(folder: Path, tmp_path: Path, damage: str) -> None:
    image = Image.fromarray(((np.hypot(*np.mgrid[-20:20, -30:30]) < 15) * 255).astype(np.uint8))
    if damage == "blurred":
        image = image.resize((15, 10)).resize(SIZE[::-1], Image.Resampling.BICUBIC)
    elif damage == "resized":
        image = image.resize((90, 60), Image.Resampling.BILINEAR).resize(SIZE[::-1], Image.Resampling.BICUBIC)
    else:
        image.save(tmp_path / "x.jpg", quality=60)
        image = Image.open(tmp_path / "x.jpg")
    image.save(folder / "labels" / "a.png")
    note = open_source(folder).notes[0]
    assert note.startswith("1 labels have many objects of fewer than 16 pixels, such as a.png (")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((40, 61), np.uint8), r"a\.npy is 40 pixels high and 61 wide, but its image .*a\.png is 40"),
        (np.zeros(SIZE), r"a\.npy must be a label of whole numbers \[height, width\], got float64 \[40, 60\]"),
        (np.zeros((*SIZE, 3), np.uint8), r"got uint8 \[40, 60, 3\]"),
        (np.array({"a": 1}), r"a\.npy"),
    ],
)
def test_arrays_that_are_no_labels(folder: Path, values: np.ndarray, message: str) -> None:
    np.save(folder / "labels" / "a.npy", values, allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        open_source(folder)


def test_a_header_that_promises_more_than_there_is_costs_nothing(folder: Path) -> None:
    np.save(folder / "labels" / "a.npy", np.zeros(SIZE, np.uint8))
    content = (folder / "labels" / "a.npy").read_bytes()
    (folder / "labels" / "a.npy").write_bytes(
        content.replace(b"(40, 60), }" + 9 * b" ", b"(40000000, 60000), }")  # the header keeps its length
    )
    with pytest.raises(ValueError, match=r"a\.npy (cannot be read as a label|is 40000000 pixels high)"):
        open_source(folder)


@pytest.mark.parametrize("split", [True, False])
def test_an_image_in_the_place_of_a_label_takes_no_memory(folder: Path, split: bool) -> None:
    """Every pixel another object: a million masks of a million pixels, or as many blobs."""
    size = (1024, 1024)
    Image.new("RGB", size[::-1]).save(folder / "images" / "a.png")
    noise = np.indices(size).sum(0) % 2 if split else np.arange(size[0] * size[1], dtype=np.int32).reshape(size)
    noise[::2] *= 1 - split
    write(folder / "labels" / "a.npy", noise.astype(np.int32))
    with pytest.raises(ValueError, match=r"a\.npy has \d{6,} objects .* would take more than 2 GiB"):
        open_source(folder, split_components=split)


def test_every_problem_is_told_at_once(folder: Path) -> None:
    for name in "bcd":
        Image.fromarray(IMAGE).save(folder / "images" / f"{name}.png")
    write(folder / "labels" / "a.png", LABEL.astype(np.uint8))
    write(folder / "labels" / "b.npy", LABEL.astype(float))
    with pytest.raises(
        ValueError, match=r"(?s)3 problems:.*c\.png has no label named c.*d\.png has no.*b\.npy must be a label"
    ):
        open_source(folder)


TYPES = st.sampled_from([np.uint8, np.int8, np.uint16, np.int64, np.float32, bool, np.complex64])
SHAPES = st.one_of(st.just((4, 6)), array_shapes(min_dims=0, max_dims=3, max_side=6))
NAMES = st.sampled_from(["a.npy", "a.png", "a.tif", "a_mask.npy", "b.npy", ".a.npy", "a/1.npy", "a.txt", "a.jpg"])


@given(
    st.lists(
        st.tuples(NAMES, st.one_of(TYPES.flatmap(lambda t: arrays(t, SHAPES)), st.binary(max_size=80))), max_size=3
    )
)
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@pytest.mark.filterwarnings("ignore")
def test_any_folder_is_masks_or_one_error(tmp_path_factory: Any, files: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "images").mkdir()
    (folder / "labels" / "a").mkdir(parents=True)
    Image.fromarray(IMAGE[:4, :6]).save(folder / "images" / "a.png")
    for name, content in files:
        if isinstance(content, bytes) or not name.endswith(".npy"):
            (folder / "labels" / name).write_bytes(content if isinstance(content, bytes) else content.tobytes())
        else:
            np.save(folder / "labels" / name, content)
    if not any((folder / "labels" / "a").iterdir()):
        (folder / "labels" / "a").rmdir()
    assert_masks_or_one_error(lambda: LabelFolder(folder), folder, (4, 6))


def test_values_are_classes_and_an_absent_one_is_an_empty_mask(folder: Path) -> None:
    for name, values in {"a": LABEL, "b": 0 * LABEL, "c": 2 * (LABEL > 0)}.items():
        Image.fromarray(IMAGE).save(folder / "images" / f"{name}.png")
        write(folder / "labels" / f"{name}.png", values.astype(np.uint8))
    source = open_source(folder, classes=3)
    assert len(source) == 3  # an image without a class is one where all masks must be empty
    np.testing.assert_array_equal(source[0].masks, [LABEL == 1, LABEL == 2, LABEL < 0])
    assert not source[1].masks.any()
    assert source[2].masks.any((1, 2)).tolist() == [False, True, False]
    assert "Images that have each class: 1: 1, 2: 2, 3: 0." in source.notes
    tiles = open_source(folder, classes=3, tile=32)
    assert {tiles[i].masks.shape for i in range(len(tiles))} == {(3, 32, 32)}


def test_what_is_no_class_is_refused(folder: Path) -> None:
    write(folder / "labels" / "a.png", LABEL.astype(np.uint8))
    with pytest.raises(
        ValueError, match=r"a\.png has the value 2, but there are 1 classes, and their values are from 1"
    ):
        open_source(folder, classes=1)
    (folder / "labels" / "a.png").unlink()
    (folder / "labels" / "a").mkdir()
    write(folder / "labels" / "a" / "1.png", LABEL.astype(np.uint8))
    with pytest.raises(ValueError, match="must be one file whose values are classes, got a folder of masks"):
        open_source(folder, classes=2)
    with pytest.raises(ValueError, match="Classes are the values of label images"):
        open_source(folder / "images", classes=2)
