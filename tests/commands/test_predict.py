"""`sam-jax predict` and `sam-jax embed`: what they write, what they say, and that errors are one sentence."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tifffile
from PIL import Image
from pycocotools.coco import COCO
from random_model import SEVERAL_MAPS, family_model, random_features, random_variables

from sam_jax import EmbeddingStore, EncodedImage, Predictor, Sam, save
from sam_jax.commands import cli
from sam_jax.commands import embed as embed_images
from sam_jax.config import TINY
from sam_jax.decoder.features import map_shapes
from sam_jax.encoders.config import VIT_TINY
from sam_jax.encoders.vit import ImageEncoder
from sam_jax.files.manifest import Provenance
from sam_jax.images.draw import CLICK_COLOURS
from sam_jax.images.pixels import predict_image

MODEL = Sam(dataclasses.replace(TINY, depth=1))
ENCODER = ImageEncoder(dataclasses.replace(VIT_TINY, depth=1, global_blocks=(0,)))
SIZE = (60, 100)
CLICK = ("--point", "30,20")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny"
    encoder_variables = jax.jit(ENCODER.init)(jax.random.key(0), jnp.zeros((128, 128, 3)))
    provenance = Provenance("sam", "tiny.pth", "0123", "Apache-2.0")
    save(path, MODEL, random_variables(MODEL), ENCODER, encoder_variables, provenance=provenance)
    return path


def draw(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    Image.fromarray(coarse).resize(SIZE[::-1], Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture
def photo(tmp_path) -> Path:
    return draw(tmp_path / "photo.png")


@pytest.fixture
def run(monkeypatch, capsys, checkpoint):
    """Run a command in this process with the tiny checkpoint; return the exit code and what it said."""

    def run(command: str, *arguments: object, checkpoint: object = checkpoint) -> tuple[int, str]:
        arguments = command, *arguments, "--checkpoint", checkpoint
        monkeypatch.setattr(sys, "argv", ["sam-jax", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "300")
        code = 0
        try:
            cli.main()
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else 1
            print(exit_.code, file=sys.stderr)
        return code, capsys.readouterr().err

    return run


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def predicted(checkpoint: Path, photo: Path, **prompts: Any) -> Any:
    predictor = Predictor.load(checkpoint)
    predictor.set_image(photo)
    return predictor.predict(**prompts)


def test_masks_are_the_predictors(run, photo, checkpoint, tmp_path):
    prompts = *CLICK, "--point", "90,50,0"
    assert run("predict", photo, *prompts, "--multimask", "--kind", "masks", "-o", tmp_path / "out")[0] == 0
    expected = predicted(checkpoint, photo, points=[[30, 20], [90, 50]], labels=[1, 0])
    for k in range(3):
        np.testing.assert_array_equal(pixels(tmp_path / f"out/photo_0_{k}.png"), expected.masks[k])
    assert run("predict", photo, *prompts, "--kind", "masks", "-o", tmp_path / "best")[0] == 0
    best = expected.masks[expected.scores.argmax()]
    np.testing.assert_array_equal(pixels(tmp_path / "best/photo_0.png"), best)


def test_a_clear_prompt_gets_mask_0(run, photo, checkpoint, tmp_path):
    """As `best_masks`: from three clicks and box corners on."""
    arguments = photo, *CLICK, "--box", "10,10,50,50", "--kind", "masks", "-o", tmp_path
    assert run("predict", *arguments)[0] == 0
    prompts = {"points": [[30, 20]], "labels": [1], "boxes": [10, 10, 50, 50]}
    expected = predicted(checkpoint, photo, **prompts, multimask=False)
    np.testing.assert_array_equal(pixels(tmp_path / "photo_0.png"), expected.masks[0])


def test_coco_has_a_score_and_a_mask_for_each_box_of_each_image(run, photo, checkpoint, tmp_path):
    other, boxes = draw(tmp_path / "other.png", seed=1), [[10, 10, 50, 50], [40, 5, 90, 55]]
    texts = (argument for box in boxes for argument in ("--box", ",".join(map(str, box))))
    assert run("predict", photo, other, *texts, "-o", tmp_path / "masks.json")[0] == 0
    coco = COCO(tmp_path / "masks.json")
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == ["photo.png", "other.png"]
    for number, path in enumerate((photo, other), 1):
        expected = predicted(checkpoint, path, boxes=boxes)
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[number]))
        for i, (annotation, scores) in enumerate(zip(annotations, expected.scores, strict=True)):
            mask = expected.masks[i, scores.argmax()]
            np.testing.assert_array_equal(coco.annToMask(annotation), mask)
            assert annotation["score"] == pytest.approx(scores.max(), abs=1e-5)
            assert annotation["area"] == mask.sum()
            assert annotation["object"] == i


def test_an_overlay_shows_masks_prompts_and_the_time_is_told(run, photo, tmp_path):
    code, said = run("predict", photo, *CLICK, "--box", "10,10,50,50", "-o", tmp_path / "overlay.png")
    assert code == 0
    assert re.search(r"Encoding took \d+\.\d\d s\nDecoding took \d+\.\d\d s\n", said)
    picture, before = pixels(tmp_path / "overlay.png"), pixels(photo)
    assert picture.shape == (*SIZE, 3)
    assert picture[20, 30].tolist() == list(CLICK_COLOURS[1])  # the click
    assert (picture[50, 20:40] == 255).all()  # the lower side of the box
    assert (picture != before).any(-1).mean() > 0.05
    assert run("predict", photo, *CLICK, "--multimask", "-o", tmp_path / "three.png")[0] == 0
    assert pixels(tmp_path / "three.png").shape[1] > 3 * SIZE[1]


def test_a_mask_file_is_a_prompt(run, photo, checkpoint, tmp_path):
    mask = np.zeros(SIZE, bool)
    mask[10:40, 20:70] = True
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert run("predict", photo, "--mask", tmp_path / "mask.png", "--kind", "masks", "-o", tmp_path / "out")[0] == 0
    expected = predicted(checkpoint, photo, mask=mask)
    np.testing.assert_array_equal(pixels(tmp_path / "out/photo_0.png"), expected.masks[expected.scores.argmax()])


def test_a_folder_is_its_images_and_bad_ones_are_told_at_the_end(run, tmp_path):
    folder = tmp_path / "photos"
    for i in range(2):
        draw(folder / f"{i}.png", i)
    (folder / "notes.txt").write_text("no image")
    (folder / "1a.png").write_bytes((folder / "1.png").read_bytes()[:60])
    code, said = run("predict", folder, *CLICK, "-o", tmp_path / "out")
    assert code == 1
    assert re.search(r"sam-jax: 1 of 3 images were not predicted\. .*1a\.png cannot be read as an image", said)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.png", "1.png"]
    assert re.search(r"Encoding took \d+\.\d\d s: \d+\.\d\d s for the first image, then \d\.\d{3} s for each\n", said)


def test_embeddings_are_made_once_and_read(run, photo, tmp_path, monkeypatch):
    store = tmp_path / "store"
    assert run("embed", photo, "-o", store, "--dtype", "float32")[0] == 0
    assert EmbeddingStore.open(store).provenance.sha256 == "0123"
    arguments = photo, *CLICK, "--kind", "masks"
    assert run("predict", *arguments, "-o", tmp_path / "a")[0] == 0
    monkeypatch.setattr("sam_jax.commands.predict.load_encoder", None)  # must not be needed
    code, said = run("predict", *arguments, "-o", tmp_path / "b", "--embeddings", store)
    assert (code, "Reading embeddings took" in said) == (0, True)
    np.testing.assert_array_equal(pixels(tmp_path / "a/photo_0.png"), pixels(tmp_path / "b/photo_0.png"))


@pytest.mark.parametrize("family", SEVERAL_MAPS)
def test_a_store_of_several_maps_is_read(family, run, photo, tmp_path):
    model = family_model(family)
    variables, features = random_variables(model), random_features(model=model)
    save(tmp_path / "decoder", model, variables)
    image = EncodedImage(features, (77, 128), SIZE)
    store = EmbeddingStore.create(tmp_path / "store", map_shapes(model.config), (128, 128), "float32", Provenance())
    store.write(photo.name, image)
    arguments = photo, *CLICK, "--kind", "masks", "--multimask", "-o", tmp_path / "out", "--embeddings", store.path
    assert run("predict", *arguments, checkpoint=tmp_path / "decoder")[0] == 0
    expected = predict_image(model, variables, image, [[30, 20]], [1])
    names = ["photo_0.png"] if family == "sam_hq" else [f"photo_0_{k}.png" for k in range(3)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    for name, mask in zip(names, expected.masks, strict=True):
        np.testing.assert_array_equal(pixels(tmp_path / "out" / name), mask)


def test_the_maps_of_an_encoder_are_stored(run, photo, tmp_path):
    """SAM-HQ's, from the image file to its mask: read from a store or encoded anew."""
    model = family_model("sam_hq")
    early = dataclasses.replace(ENCODER.config, early_feature=True, width=model.config.early_width)
    encoder = ImageEncoder(early)
    encoder_variables = jax.jit(encoder.init)(jax.random.key(0), jnp.zeros((128, 128, 3)))
    whole, store = tmp_path / "whole", tmp_path / "store"
    save(whole, model, random_variables(model), encoder, encoder_variables)
    assert run("embed", photo, "-o", store, "--dtype", "float32", checkpoint=whole)[0] == 0
    assert EmbeddingStore.open(store).shapes == map_shapes(model.config)
    arguments = "predict", photo, *CLICK, "--kind", "masks"
    assert run(*arguments, "-o", tmp_path / "a", checkpoint=whole)[0] == 0
    assert run(*arguments, "-o", tmp_path / "b", "--embeddings", store, checkpoint=whole)[0] == 0
    np.testing.assert_array_equal(pixels(tmp_path / "a/photo_0.png"), pixels(tmp_path / "b/photo_0.png"))


def test_half_the_room_is_nearly_the_same(run, photo, tmp_path):
    """Embeddings are bfloat16 unless asked for float32: 8 bits instead of 24."""
    for dtype in ("float32", "bfloat16"):
        store = tmp_path / dtype
        assert run("embed", photo, "-o", store, *(["--dtype", dtype] if dtype == "float32" else []))[0] == 0
        assert EmbeddingStore.open(store).dtype == dtype
        assert run("predict", photo, *CLICK, "--kind", "masks", "-o", store / ".out", "--embeddings", store)[0] == 0
    masks = [pixels(tmp_path / dtype / ".out/photo_0.png") for dtype in ("float32", "bfloat16")]
    assert (masks[0] == masks[1]).mean() > 0.98


def test_an_interrupted_run_is_finished_by_the_same_command(run, tmp_path, monkeypatch):
    folder = tmp_path / "photos"
    for i in range(4):
        draw(folder / f"{i}.png", i)
    read, read_files = embed_images.read_image, []

    def interrupted(file: Path, reading: Any) -> Any:
        read_files.append(file.name)
        if read_files.count("3.png") == 1 and file.name == "3.png":
            raise KeyboardInterrupt
        return read(file, reading)

    monkeypatch.setattr(embed_images, "read_image", interrupted)
    code, said = run("embed", folder, "-o", tmp_path / "store")
    assert (code, "interrupted" in said) == (1, True)
    assert EmbeddingStore.open(tmp_path / "store").names() == ["0.png", "1.png"]
    code, said = run("embed", folder, "-o", tmp_path / "store")
    assert (code, "Wrote 2 embeddings" in said, "2 were there" in said) == (0, True, True)
    assert sorted(read_files[4:]) == ["2.png", "3.png"]
    assert EmbeddingStore.open(tmp_path / "store").read_many([f"{i}.png" for i in range(4)]).embeddings.shape[0] == 4


def test_an_image_that_was_edited_is_encoded_anew(run, photo, tmp_path):
    store = tmp_path / "store"
    assert run("embed", photo, "-o", store)[0] == 0
    before = EmbeddingStore.open(store).read(photo.name)
    draw(photo, 7)  # another picture of the same size
    code, said = run("predict", photo, *CLICK, "-o", tmp_path / "out", "--embeddings", store)
    assert (code, f"{photo.name} has been changed since its embedding in" in said) == (1, True)
    assert run("embed", photo, "-o", store)[0] == 0
    assert (EmbeddingStore.open(store).read(photo.name).embedding != before.embedding).any()
    assert run("predict", photo, *CLICK, "-o", tmp_path / "out", "--embeddings", store)[0] == 0
    code, said = run("embed", photo, "-o", store)
    assert "Wrote 0 embeddings" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Nothing is asked for: give at least one --point, --box or --mask."),
        (("--point", "3"), "--point must be x,y or x,y,0 in pixels of the image, got '3'."),
        (("--point", "3,4,5"), "--point ends in 0 for the background, or 1 for the object; got 3,4,5."),
        (("--box", "3,4,5"), "--box must be x0,y0,x1,y1 in pixels of the image, got '3,4,5'."),
        (("--box", "1,2,3,4", "--box", "1,2,3,4", *CLICK), "Several --box are an object each"),
        (("--point", "300,20"), "(300, 20) is outside the image, which is 100 pixels wide and 60 high."),
        (("--mask", "no.png"), "no.png cannot be read as an image"),
        ((*CLICK, "--embeddings", "no"), "no is no store of embeddings"),
    ],
)
def test_prompts_that_cannot_be(arguments, message, run, photo, tmp_path):
    code, said = run("predict", photo, *arguments, "-o", tmp_path / "out")
    assert code == 1
    assert message in said.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_images_and_checkpoints_that_cannot_be(run, photo, tmp_path):
    out = "-o", tmp_path / "out"
    assert run("predict", tmp_path / "no.png", *CLICK, *out)[1].endswith(
        f"There is no file or folder {tmp_path}/no.png.\n"
    )
    (tmp_path / "empty").mkdir()
    assert "There is no image in the folder" in run("predict", tmp_path / "empty", *CLICK, *out)[1]
    assert "No image is given" in run("predict", *CLICK, *out)[1]
    code, said = run("predict", photo, *CLICK, *out, checkpoint="sam_vit_z")
    assert (code, "sam_vit_z" in said) == (1, True)
    twins = draw(tmp_path / "twin/photo.png")
    assert "written to" in run("predict", photo, twins, *CLICK, *out)[1]
    assert "several of photo.png" in run("embed", photo, twins, *out)[1]


def test_nothing_is_replaced_without_being_asked(run, photo):
    before = photo.read_bytes()
    code, said = run("predict", photo, *CLICK, "-o", photo)
    assert (code, "add --overwrite" in said, photo.read_bytes() == before) == (1, True, True)


def test_an_embedding_of_another_image_is_refused(run, photo, tmp_path):
    assert run("embed", photo, "-o", tmp_path / "store")[0] == 0
    Image.open(photo).resize((50, 50)).save(photo)
    code, said = run("predict", photo, *CLICK, "-o", tmp_path / "out", "--embeddings", tmp_path / "store")
    assert (code, "photo.png is 50 pixels high and 50 wide, but the embedding" in said) == (1, True)


def test_a_second_run_finds_the_programs_of_the_first(checkpoint, photo, tmp_path):
    """In the user's cache, if JAX_COMPILATION_CACHE_DIR does not say otherwise."""
    command = "from sam_jax.commands.cli import main; main()", "predict", photo, *CLICK, "--checkpoint", checkpoint
    unset = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment = unset | {"XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    programs = []
    for name in ("first.png", "second.png"):
        arguments = [sys.executable, "-P", "-c", *map(str, (*command, "-o", tmp_path / name))]
        subprocess.run(arguments, env=environment, check=True, capture_output=True)
        programs.append({path.name for path in (tmp_path / "sam-jax" / "programs").glob("*-cache")})
    assert programs[0]
    assert programs[0] == programs[1]


def test_ranges_channels_and_pages_are_chosen_and_a_store_is_of_one_choice(run, checkpoint, tmp_path):
    photo, store = tmp_path / "stack.tif", tmp_path / "store"
    pages = np.random.default_rng(0).integers(0, 4096, (3, *SIZE)).astype(np.uint16)
    tifffile.imwrite(photo, pages, photometric="minisblack")
    asked = ("--page", 2, "--range", "file")
    assert run("predict", photo, *CLICK, "-o", tmp_path / "out", "--kind", "masks", "--multimask", *asked)[0] == 0
    seen = np.repeat((pages[1] / 65535 * 255 + 0.5).astype(np.uint8)[..., None], 3, -1)
    predictor = Predictor.load(checkpoint)
    predictor.set_image(seen)
    masks, *_ = predictor.predict(points=[[30, 20]], labels=[1])
    for i, mask in enumerate(masks):
        np.testing.assert_array_equal(pixels(tmp_path / "out" / f"stack_0_{i}.png") > 0, mask)
    code, said = run("predict", photo, *CLICK, "-o", tmp_path / "no.png")
    assert code == 1
    assert "it has 3 pages. Choose one (page)" in said

    assert "Wrote 1 embeddings" in run("embed", photo, "-o", store, *asked)[1]
    assert "Wrote 0 embeddings" in run("embed", photo, "-o", store, *asked)[1]
    from_store = ("predict", photo, *CLICK, "--embeddings", store, "-o")
    assert run(*from_store, tmp_path / "read.png", *asked)[0] == 0
    code, said = run(*from_store, tmp_path / "other.png", "--page", 3)
    assert code == 1
    assert "or is now read in another way" in said
    assert "Wrote 1 embeddings" in run("embed", photo, "-o", store, "--page", 3)[1]
    assert run(*from_store, tmp_path / "other.png", "--page", 3)[0] == 0
