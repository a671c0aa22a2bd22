"""COCO JSON as tools write it: what means one thing is taken, what is left out is told, the rest is one error."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_sources import IMAGE, MASK, SIZE, SQUARE, annotation, compressed, run_lengths, write_coco
from whole import assert_masks_or_one_error

from sam_jax.train.data.coco import CocoImages
from sam_jax.train.data.sources import open_source

GOOD = annotation(1, [SQUARE])


def opened(folder: Path, annotations: list[dict[str, Any]], **image: Any) -> Any:
    write_coco(folder, annotations, **image)
    return open_source(folder)


@pytest.mark.parametrize("missing", [{"segmentation": []}, {"segmentation": None}, {"bbox": [1, 2, 3, 4]}])
def test_annotations_without_an_outline_are_left_out_and_counted(tmp_path: Path, missing: dict[str, Any]) -> None:
    without = annotation(2, None) | missing
    source = opened(tmp_path, [without, GOOD, without])
    assert len(source[0].masks) == 1
    assert source.notes == (f"{tmp_path / 'annotations.json'}: left out 2 annotations without an outline.",)
    with pytest.raises(ValueError, match="has no objects: 1 annotations without an outline"):
        opened(tmp_path, [without])


@pytest.mark.parametrize("flag", [0, False, None, "0", "false"])
def test_every_way_to_write_that_an_object_is_no_crowd(tmp_path: Path, flag: Any) -> None:
    assert len(opened(tmp_path, [annotation(1, [SQUARE], iscrowd=flag)])[0].masks) == 1


@pytest.mark.parametrize("flag", [1, True, "1"])
def test_crowds_are_left_out_and_told_and_cvat_s_brush_masks_are_objects(tmp_path: Path, flag: Any) -> None:
    runs = {"size": list(SIZE), "counts": run_lengths(MASK)}
    source = opened(tmp_path, [GOOD, annotation(2, runs, iscrowd=flag)])
    assert (len(source[0].masks), "left out 1 crowds (iscrowd is 1)" in source.notes[0]) == (1, True)
    brush = annotation(2, runs, iscrowd=flag, attributes={"occluded": False})
    np.testing.assert_array_equal(opened(tmp_path, [brush])[0].masks, [MASK])


def test_a_flag_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="annotation 3 must have iscrowd 0 or 1, got 'perhaps'"):
        opened(tmp_path, [annotation(3, [SQUARE], iscrowd="perhaps")])


@pytest.mark.parametrize(("of_image", "of_annotation"), [(7, "7"), ("7", 7), (7.0, 7), ("a", "a")])
def test_ids_may_be_numbers_or_texts(tmp_path: Path, of_image: Any, of_annotation: Any) -> None:
    assert len(opened(tmp_path, [annotation(1, [SQUARE], image_id=of_annotation)], id=of_image)) == 1


@pytest.mark.parametrize("other", [7, "7"])
def test_two_images_with_one_id_are_refused(tmp_path: Path, other: Any) -> None:
    path = write_coco(tmp_path, [GOOD])
    content = json.loads(path.read_text())
    content["images"].append(content["images"][0] | {"id": other})
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="has two images with the id 7"):
        open_source(tmp_path)


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    bad = [annotation(i, [[float("nan")] * 6]) for i in range(2, 16)]
    with pytest.raises(ValueError, match=r"(?s)^14 problems:.*annotation 2 must.*annotation 11 must.*and 4 more\.$"):
        opened(tmp_path, [GOOD, *bad])


@pytest.mark.parametrize("shift", [100, 1e7])
def test_an_object_without_a_pixel_is_left_out(tmp_path: Path, shift: float) -> None:
    outside = annotation(2, [[x + shift for x in SQUARE]])
    assert len(opened(tmp_path, [GOOD, outside])[0].masks) == 1
    with pytest.raises(ValueError, match="has no objects: 1 annotations without a pixel in their image"):
        opened(tmp_path, [outside])
    empty = {"size": list(SIZE), "counts": [SIZE[0] * SIZE[1]]}
    with pytest.raises(ValueError, match="without a pixel"):
        opened(tmp_path, [annotation(3, empty)])


@pytest.mark.parametrize(
    "size", [{"height": None, "width": None}, {"height": "40", "width": "60"}, {"height": 40.0, "width": "60.0"}]
)
def test_sizes_may_be_missing_or_texts(tmp_path: Path, size: dict[str, Any]) -> None:
    assert opened(tmp_path, [GOOD], **size)[0].masks.shape[1:] == SIZE


@pytest.mark.parametrize(
    "name",
    [
        "a.png",
        "images/a.png",
        "images\\a.png",
        r"C:\data\set\a.png",
        "/elsewhere/a.png",
        "http://host/upload/a.png?x=1",
        "https://host/data/a%2Epng",
        "deep/er/a.png",
    ],
)
def test_a_file_is_found_where_one_place_fits(tmp_path: Path, name: str) -> None:
    example = opened(tmp_path, [GOOD], file_name=name)[0]
    assert example.name == "a.png"
    np.testing.assert_array_equal(example.image, IMAGE)


def test_a_name_below_images_beside_the_json(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [GOOD])
    assert len(CocoImages(path, tmp_path)) == 1  # the folder is not images/ itself


def test_a_name_that_two_files_have_is_refused(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / "images" / folder).mkdir(parents=True)
        Image.fromarray(IMAGE).save(tmp_path / "images" / folder / "b.png")
    with pytest.raises(ValueError, match=r"image 7 must be a file in .*; 2 files have this name"):
        opened(tmp_path, [GOOD], file_name="C:\\b.png")
    assert opened(tmp_path, [GOOD], file_name="two/b.png")[0].name == "two__b.png"


@pytest.mark.parametrize(
    "name",
    ["../annotations.json", "..\\..\\x.png", "", ".", "/", "http://", "http://[", None, 3, "nul\0.png", "x" * 5000],
)
def test_names_that_lead_elsewhere_or_nowhere_are_named(tmp_path: Path, name: Any) -> None:
    with pytest.raises(ValueError, match=r"image 7 must (be a file in|have a text as file_name)"):
        opened(tmp_path, [GOOD], file_name=name)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_byte_order_mark_is_no_part_of_it(tmp_path: Path, encoding: str) -> None:
    path = write_coco(tmp_path, [GOOD])
    path.write_bytes(path.read_text().encode(encoding))
    assert len(open_source(tmp_path)) == 1


@pytest.mark.parametrize("entry", ["images", "annotations"])
@pytest.mark.parametrize("value", [None, {}, "x", [None], [3], [[]]])
def test_entries_that_are_no_objects(tmp_path: Path, entry: str, value: Any) -> None:
    path = write_coco(tmp_path, [GOOD])
    path.write_text(json.dumps(json.loads(path.read_text()) | {entry: value}))
    with pytest.raises(ValueError, match=rf"annotations\.json is not COCO JSON: its {entry} must be"):
        open_source(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"images": ' * 50_000, "\xff"])
def test_what_is_no_json(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"x\.json is not JSON"):
        open_source(path)


@pytest.mark.parametrize("orientation", [6, 8])
@pytest.mark.parametrize("stored", [True, False])
def test_sizes_tell_whether_images_are_as_stored(tmp_path: Path, orientation: int, stored: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = np.rot90(IMAGE, -1 if orientation == 6 else 1)
    size = SIZE if stored else SIZE[::-1]
    path = write_coco(tmp_path, [annotation(1, {"size": list(size), "counts": [100, 300, SIZE[0] * SIZE[1] - 400]})])
    content = json.loads(path.read_text())
    content["images"][0] |= {"height": size[0], "width": size[1]}
    path.write_text(json.dumps(content))
    Image.fromarray(IMAGE).save(tmp_path / "images" / "a.png", exif=exif)
    example = open_source(tmp_path)[0]
    np.testing.assert_array_equal(example.image, IMAGE if stored else turned)
    assert example.masks.shape[1:] == size


def test_images_that_disagree_about_it_are_named(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [GOOD, annotation(2, [SQUARE], image_id=8)])
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a.png", "b.png"):
        Image.fromarray(IMAGE).save(tmp_path / "images" / name, exif=exif)
    content = json.loads(path.read_text())
    content["images"].append({"id": 8, "file_name": "b.png", "height": SIZE[1], "width": SIZE[0]})
    path.write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"a\.png is 60 pixels high and 40 wide, but .* says 40 pixels high and 60 wide"
    ):
        open_source(tmp_path)


def test_a_folder_of_sa_1b(tmp_path: Path) -> None:
    for number in (1, 2):
        Image.fromarray(IMAGE).save(tmp_path / f"sa_{number}.jpg")
        image = {"image_id": number, "width": SIZE[1], "height": SIZE[0], "file_name": f"sa_{number}.jpg"}
        objects = [{"id": 10 * number, "segmentation": compressed(MASK), "bbox": [8, 5, 22, 15], "area": 330}]
        (tmp_path / f"sa_{number}.json").write_text(json.dumps({"image": image, "annotations": objects}))
    source = open_source(tmp_path)
    assert [source[i].name for i in range(len(source))] == ["sa_1.jpg", "sa_2.jpg"]
    np.testing.assert_array_equal(source[1].masks, [MASK])
    assert len(open_source(tmp_path / "sa_1.json")) == 1


def test_an_annotation_of_several_files_is_named_by_its_own(tmp_path: Path) -> None:
    for number in (1, 2):
        Image.fromarray(IMAGE).save(tmp_path / f"{number}.png")
        image = {"image_id": number, "width": SIZE[1], "height": SIZE[0], "file_name": f"{number}.png"}
        wrong = {"id": 5, "segmentation": compressed(MASK) if number == 1 else [[float("inf")] * 6]}
        (tmp_path / f"{number}.json").write_text(json.dumps({"image": image, "annotations": [wrong]}))
    with pytest.raises(ValueError, match=r"2\.json: annotation 5 must have polygons of finite numbers"):
        open_source(tmp_path)


def test_more_objects_than_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sam_jax.train.data.examples.MOST_BYTES", 2 * SIZE[0] * SIZE[1])
    assert len(opened(tmp_path, [GOOD, GOOD])[0].masks) == 2
    with pytest.raises(ValueError, match="image 7 has 3 objects in an image of 40 pixels high"):
        opened(tmp_path, [GOOD] * 3)


def test_wide_images_are_told(tmp_path: Path) -> None:
    write_coco(tmp_path, [GOOD])
    Image.fromarray(np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE)).save(tmp_path / "images" / "a.png")
    assert re.match(r"1 of 1 images have more than 8 bits, such as a\.png\. Of each", open_source(tmp_path).notes[0])


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(10**10), 10**10), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)
FIELDS = st.sampled_from(["id", "image_id", "iscrowd", "segmentation", "attributes", "file_name", "height", "width"])


@given(st.dictionaries(FIELDS, VALUES, max_size=3), st.dictionaries(FIELDS, VALUES, max_size=3))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_change_of_a_good_file_is_masks_or_one_error(tmp_path: Path, image: Any, entry: Any) -> None:
    write_coco(tmp_path, [GOOD, GOOD | entry], **image)
    assert_masks_or_one_error(lambda: open_source(tmp_path), tmp_path, SIZE)
