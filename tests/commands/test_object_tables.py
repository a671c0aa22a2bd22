"""Objects from a table of prompts, and files that other tools open: TIFF by tifffile, COCO by pycocotools, CSV."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from pycocotools.coco import COCO

from sam_jax import Predictor
from sam_jax.commands import cli
from sam_jax.commands.demo import SMALL
from sam_jax.commands.masks import numbered
from sam_jax.commands.object_tables import Asked, ask, read_prompts
from sam_jax.images.run_lengths import decoded
from sam_jax.images.windows import Window, windows_of
from sam_jax.train.data.scenes import draw_scene

SIZE = (60, 90)
BOX = (20, 10, 60, 40)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name, seed in (("a", 1), ("b", 2), ("c", 3)):
        Image.fromarray(draw_scene(seed, SIZE).image).save(tmp_path / "images" / f"{name}.png")
    return tmp_path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: object) -> str:
        monkeypatch.setattr("sys.argv", ["sam-jax", "masks", *map(str, arguments), "--checkpoint", str(SMALL)])
        cli.main()
        return " ".join("".join(capsys.readouterr()).split())

    return run


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_prompts_in_a_table_become_labels_coco_and_a_table(folder: Path, run: Any) -> None:
    table = folder / "prompts.csv"
    table.write_text(
        "image,object,x0,y0,x1,y1,x,y,label\n"
        "a.png,70000,20,10,60,40,,,\n"
        "a.png,3,,,,,30,20,1\na.png,3,,,,,5,5,0\na.png,3,,,,,32,22,\n"
        "b.png,,0,0,90,60,,,\n"
    )
    kinds = ("--kind", "tiff", "--kind", "coco", "--kind", "table", "--kind", "picture")
    said = run(folder / "images", "-o", folder / "out", "--prompts", table, *kinds)
    assert "1 of 3 images have no row in" in said
    assert "Wrote 3 masks" in said
    predictor = Predictor.load(SMALL)
    predictor.set_image(folder / "images" / "a.png")
    masks, scores, _ = predictor.predict(boxes=BOX)
    clear = predictor.predict(points=[(30, 20), (5, 5), (32, 22)], labels=[1, 0, 1], multimask=False)
    want = {70000: masks[scores.argmax()], 3: clear.masks[0]}

    read = COCO(str(folder / "out" / "a.json"))
    for annotation in read.loadAnns(read.getAnnIds()):
        np.testing.assert_array_equal(read.annToMask(annotation), want[annotation["object"]])
    labels = tifffile.imread(folder / "out" / "a.tif")
    assert labels.dtype == np.uint32
    np.testing.assert_array_equal(labels > 0, want[70000] | want[3])
    assert set(np.unique(labels)) <= {0, 3, 70000}
    assert tifffile.imread(folder / "out" / "b.tif").dtype == np.uint16
    rows = rows_of(folder / "out" / "a.csv")
    assert [int(row["object"]) for row in rows] == [70000, 3]
    for row in rows:
        mask = want[int(row["object"])]
        assert int(row["area"]) == mask.sum()
        x0, y0, x1, y1 = (int(row[name]) for name in ("x0", "y0", "x1", "y1"))
        assert mask[y0:y1, x0:x1].sum() == mask.sum()
        assert mask[y0, x0:x1].any()
        assert mask[y1 - 1, x0:x1].any()
    assert float(rows[0]["score"]) == pytest.approx(scores.max(), abs=1e-4)
    assert not (folder / "out" / "c.tif").exists()
    assert "2 were there" in run(folder / "images", "-o", folder / "out", "--prompts", table, *kinds)


@pytest.mark.slow
def test_small_objects_of_a_large_image_are_found_in_tiles(folder: Path, run: Any) -> None:
    """Four copies of a scene side by side: tiles find in each what the scene alone has."""
    scene = draw_scene(1, SIZE).image
    Image.fromarray(np.tile(scene, (4, 4, 1))).save(folder / "large.png")
    settings = ("--points-per-side", "4", "--pred-iou-thresh", "0.3", "--stability-score-thresh", "0.3")
    found = []
    for tile in ((), ("--tile", "90")):
        run(folder / "large.png", "-o", folder / f"out{len(tile)}", "--kind", "table", *settings, *tile)
        found.append(len(rows_of(folder / f"out{len(tile)}" / "large.csv")))
    assert found[1] > 2 * found[0]


def test_prompts_are_asked_in_the_tile_around_them(folder: Path) -> None:
    pixels = np.tile(draw_scene(1, SIZE).image, (2, 3, 1))  # 120 x 270: tiles of 90 begin at 0, 30 and 0, 60, 120, 180
    predictor = Predictor.load(SMALL)
    box = (100.0, 40.0, 140.0, 70.0)
    objects = [
        Asked(5, [], [], [box]),
        Asked(2, [(200.0, 100.0)], [1], []),
        Asked(9, [], [], [(5.0, 5.0, 200.0, 50.0)]),
    ]
    records = ask(predictor, pixels, objects, tile=90)
    assert [record["object"] for record in records] == [5, 2, 9]
    assert records[1]["point_coords"] == [[200.0, 100.0]]
    window = Window(60, 0, 150, 90)
    assert window in windows_of((120, 270), 90)
    predictor.set_image(pixels[window.pixels])
    masks, scores, _ = predictor.predict(boxes=(40, 40, 80, 70))
    want = np.zeros((120, 270), bool)
    want[window.pixels] = masks[scores.argmax()]
    np.testing.assert_array_equal(decoded(records[0]["segmentation"]), want)
    predictor.set_image(pixels)
    masks, scores, _ = predictor.predict(boxes=(5, 5, 200, 50))
    np.testing.assert_array_equal(decoded(records[2]["segmentation"]), masks[scores.argmax()])


@pytest.mark.slow
def test_found_objects_can_be_asked_again(folder: Path, run: Any) -> None:
    settings = ("--points-per-side", "4", "--pred-iou-thresh", "0.3", "--stability-score-thresh", "0.3")
    run(folder / "images" / "a.png", "-o", folder / "all", "--kind", "table", "--kind", "labels", *settings)
    rows = rows_of(folder / "all" / "a.csv")
    labels = np.asarray(Image.open(folder / "all" / "a.png"))
    assert len(rows) > 3
    assert labels.max() <= len(rows)
    assert all(float(row["stability_score"]) >= 0.3 for row in rows)
    run(folder / "images" / "a.png", "-o", folder / "again", "--kind", "table", "--prompts", folder / "all" / "a.csv")
    assert [row["object"] for row in rows_of(folder / "again" / "a.csv")] == [row["object"] for row in rows]


def test_images_are_read_as_told(folder: Path, run: Any) -> None:
    stack = np.random.default_rng(0).integers(0, 4096, (2, *SIZE)).astype(np.uint16)
    tifffile.imwrite(folder / "z.tif", stack, photometric="minisblack")
    (folder / "prompts.csv").write_text("image;x;y\nz.tif;30;30\n")
    with pytest.raises(SystemExit, match="it has 2 pages"):
        run(folder / "z.tif", "-o", folder / "out", "--prompts", folder / "prompts.csv")
    run(folder / "z.tif", "-o", folder / "out2", "--prompts", folder / "prompts.csv", "--page", "2")
    with pytest.raises(SystemExit, match="was made with other settings"):
        run(folder / "z.tif", "-o", folder / "out2", "--prompts", folder / "prompts.csv", "--page", "1")


def test_results_that_cannot_be_written(folder: Path, run: Any) -> None:
    (folder / "prompts.csv").write_text("image,x,y\nnone.png,1,1\n")
    with pytest.raises(SystemExit, match=r"1 images of .*prompts\.csv are not given, such as none\.png"):
        run(folder / "images", "-o", folder / "out", "--prompts", folder / "prompts.csv")
    with pytest.raises(SystemExit, match="coco and polygons are files of one name: write them to two"):
        run(folder / "images", "-o", folder / "out", "--kind", "coco", "--kind", "polygons")
    (folder / "prompts.csv").write_text("image,x,y\na.png,1,1000\n")
    with pytest.raises(SystemExit, match=r"a\.png: \(1, 1000\) is outside the image"):
        run(folder / "images", "-o", folder / "out", "--prompts", folder / "prompts.csv")


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_tables_as_spreadsheets_write_them(tmp_path: Path, mark: str) -> None:
    lines = ["image,x0,y0,x1,y1,note", "dir\\a.png,1.5,2,3,4,x", "b.png,0,0,5,5,", "a.png,2,2,4,4,y"]
    (tmp_path / "t.csv").write_text("\n".join(lines).replace(",", mark), "utf-8-sig")
    boxes = {"a.png": [(1.5, 2, 3, 4), (2, 2, 4, 4)], "b.png": [(0, 0, 5, 5)]}
    want = {name: [Asked(i, [], [], [box]) for i, box in enumerate(some, 1)] for name, some in boxes.items()}
    assert read_prompts(tmp_path / "t.csv") == want


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,x,y\na,1,1", "must have the columns image, and x0"),
        ("image,x,y", "has no rows"),
        ("image,x,y\na,1,", "line 2: could not convert string to float"),
        ("image,x,y\na,1,1\na,,", "line 3: a row must have x0"),
        ("image,x,y\na,nan,1", "line 2: x, y must be numbers, got nan, 1"),
        ("image,x,y,label\na,1,1,2", "label must be 1 for the object or 0"),
        ("image,object,x,y\na,0,1,1", "object must be a whole number from 1 on, got '0'"),
        ("image,object,x0,y0,x1,y1\na,1,1,1,2,2\na,1,1,1,2,2", "line 3: object 1 has two boxes"),
    ],
)
def test_bad_tables_are_named_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / "t.csv")
    with pytest.raises(ValueError, match="cannot be read as a table"):
        read_prompts(tmp_path)


def test_many_objects_need_32_bits() -> None:
    pixels = np.zeros((1, 2, 3), np.uint8)
    records = [{"segmentation": np.array([[True, False]]), "area": 1, "object": number} for number in (1, 65_536)]
    assert numbered(records[:1], pixels).dtype == np.uint16
    assert numbered(records, pixels).dtype == np.uint32
