"""A folder decoded by one process: what its files may hold, what the results are, and what is said of a bad one."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_model import FAMILIES, random_embedding, random_features, random_variables

from sam_jax import MaskPrediction, Prompts, Sam, Sizes, predict_masks
from sam_jax.batch import folder
from sam_jax.batch.folder import predict_folder, read_image
from sam_jax.batch.sharding import make_mesh, split_decode
from sam_jax.config import TINY
from sam_jax.decoder.features import maps_of
from sam_jax.decoder.model import outputs_of

MODEL = Sam(dataclasses.replace(TINY, depth=1))  # compiles faster, and is no other matter here
CONFIG = MODEL.config
VARIABLES = random_variables(MODEL)
SIZES = Sizes(tokens=(4,), prompt_sets=(2,), images=(1,))
EMBEDDING = np.asarray(random_embedding())
CLICKS = {
    "points": np.array([[[20, 30], [5, 5]], [[90, 100], [0, 7]]], np.float32),
    "labels": np.array([[1, 0], [1, 1]]),
}


def write(path: Path, lists: Any = None, **arrays: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **arrays)
    if lists is not None:
        path.with_suffix(".json").write_text(json.dumps(lists))
    return path


def assert_same_leaves(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("in_lists", [(), ("points", "labels"), ("points", "labels", "boxes")])
def test_prompts_are_arrays_or_lists(in_lists, tmp_path):
    prompts = {**CLICKS, "boxes": np.array([[1, 2, 3, 4], [5, 6, 70, 80]]), "masks": np.full((2, 32, 32), -3.5)}
    lists = {name: prompts[name].tolist() for name in in_lists} if in_lists else None
    arrays = {name: array for name, array in prompts.items() if name not in in_lists}
    image = read_image(write(tmp_path / "a.npz", lists, embedding=EMBEDDING, **arrays), CONFIG)
    assert_same_leaves(image.prompts, Prompts.build(**prompts, images=False))
    np.testing.assert_array_equal(image.features, EMBEDDING)


def test_lists_may_be_ragged(tmp_path):
    lists = {"points": [[[1, 2]], None], "labels": [[1], None], "boxes": [None, [1, 2, 3, 4]]}
    image = read_image(write(tmp_path / "a.npz", lists, embedding=EMBEDDING), CONFIG)
    assert_same_leaves(image.prompts, Prompts.build(**lists))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float64])
def test_embeddings_of_all_floats_are_read_as_float32(dtype, tmp_path):
    stored = EMBEDDING.astype(dtype)
    image = read_image(write(tmp_path / "a.npz", embedding=stored, **CLICKS), CONFIG)
    assert image.features.dtype == np.float32
    np.testing.assert_array_equal(image.features, stored.astype(np.float32))


BAD = {
    "no embedding": ({}, None, "no array named embedding"),
    "pickled": ({"embedding": np.array([EMBEDDING, None], object)}, None, "allow_pickle=False"),
    "another family's": ({"early": EMBEDDING}, None, "takes the maps embedding of an image, got embedding, early"),
    "integers": ({"embedding": EMBEDDING.astype(int)}, None, "must be floats, got an array of shape"),
    "channels first": ({"embedding": EMBEDDING.transpose(2, 0, 1)}, None, "channels first"),
    "several images": ({"embedding": EMBEDDING[None]}, None, "prompts must have axes"),
    "no prompts": ({"points": None, "labels": None}, None, "got none"),
    "no labels": ({"labels": None}, None, "points and labels come together"),
    "another name": ({"pionts": np.zeros(1)}, None, "must be some of points, labels, boxes, masks; got pionts"),
    "outside": ({"points": CLICKS["points"] + 100}, None, "Coordinates must be"),
    "twice": ({}, {"labels": [[1, 1], [1, 1]]}, "labels must be in the .npz file or in a.json, not in both"),
    "no object": ({}, [1], "a.json must be an object of lists, got \\[1\\]"),
    "numbers": ({"points": None, "labels": None}, {"points": 1, "labels": 2}, "a.json must be an object of lists, got"),
}


@pytest.mark.parametrize(("change", "lists", "message"), BAD.values(), ids=BAD)
def test_bad_content_is_named(change, lists, message, tmp_path):
    arrays = {"embedding": EMBEDDING, **CLICKS} if change or lists else CLICKS
    arrays = {name: array for name, array in (arrays | change).items() if array is not None}
    with pytest.raises(ValueError, match=rf"a\.npz cannot be decoded: .*{message}"):
        read_image(write(tmp_path / "a.npz", lists, **arrays), CONFIG)


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-100], lambda data: data[:50] + b"x" * 5000])
def test_damaged_files_are_named(damage, tmp_path):
    path = write(tmp_path / "a.npz", embedding=EMBEDDING, **CLICKS)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"a\.npz cannot be decoded: it is no .npz file, or only the beginning of one"):
        read_image(path, CONFIG)


def test_flipped_bits_are_named(tmp_path):
    path = write(tmp_path / "a.npz", embedding=EMBEDDING, **CLICKS)
    data = bytearray(path.read_bytes())
    data[2000] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.npz cannot be decoded: Bad CRC-32"):
        read_image(path, CONFIG)


def test_lists_that_are_no_json_are_named(tmp_path):
    path = write(tmp_path / "a.npz", embedding=EMBEDDING)
    path.with_suffix(".json").write_text('{"points": [')
    with pytest.raises(ValueError, match=r"a\.npz cannot be decoded: Expecting value"):
        read_image(path, CONFIG)


@pytest.fixture
def source(tmp_path) -> Path:
    """Five images with one or two prompt sets of one to three clicks."""
    rng = np.random.default_rng(6)
    for i, (sets, clicks) in enumerate([(1, 1), (2, 1), (2, 3), (1, 2), (2, 2)]):
        points, labels = rng.uniform(0, 128, (sets, clicks, 2)), np.ones((sets, clicks), int)
        write(tmp_path / "source" / f"{i}.npz", embedding=random_embedding(seed=i), points=points, labels=labels)
    return tmp_path / "source"


def test_results_are_those_of_predict_masks_from_one_program(source):
    compiled, mesh = split_decode._cache_size(), make_mesh(2, jax.devices("cpu")[:2])
    written = predict_folder(MODEL, VARIABLES, source, source.parent / "new" / "target", sizes=SIZES, mesh=mesh)
    assert [path.name for path in written] == [f"{i}.npz" for i in range(5)]
    assert split_decode._cache_size() == compiled + 1
    for path in written:
        image = read_image(source / path.name, CONFIG)
        expected = predict_masks(MODEL, VARIABLES, image.features, image.prompts, sizes=SIZES)
        with np.load(path) as result:
            assert sorted(result) == ["iou", "logits"]
            assert result["logits"].dtype == result["iou"].dtype == np.float32
            np.testing.assert_allclose(result["logits"], expected.logits, atol=1e-4)
            np.testing.assert_allclose(result["iou"], expected.iou, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "outputs"),
    [("sam_hq", ["hq", "iou", "logits"]), ("sam2", ["iou", "logits", "object_score", "single"])],
)
def test_families_have_more_maps_and_more_results(family, outputs, tmp_path):
    model = Sam(dataclasses.replace(CONFIG, **FAMILIES[family]))
    variables = random_variables(model)
    features = [random_features(model=model, seed=i) for i in range(2)]
    for i, one in enumerate(features):
        write(tmp_path / "source" / f"{i}.npz", **maps_of(one), **{name: x[: i + 1] for name, x in CLICKS.items()})
    options = {"sizes": SIZES, "mesh": make_mesh(1, jax.devices("cpu")[:1])}
    for binary in (False, True):
        target = tmp_path / f"target_{binary}"
        for i, path in enumerate(
            predict_folder(model, variables, tmp_path / "source", target, binary=binary, **options)
        ):
            image = read_image(tmp_path / "source" / path.name, model.config)
            want = outputs_of(predict_masks(model, variables, features[i], image.prompts, sizes=SIZES))
            if binary:
                logits = want.pop("logits")
                want["masks"] = (logits + want.pop("hq")[:, None] if "hq" in want else logits) > 0
            with np.load(path) as result:
                assert sorted(result) == sorted(want)
                assert binary or sorted(result) == outputs
                for name, array in want.items():
                    np.testing.assert_allclose(result[name], array, atol=1e-4)
    path = write(tmp_path / "a.npz", embedding=maps_of(features[0])["embedding"], **CLICKS)
    with pytest.raises(
        ValueError, match=r"a\.npz cannot be decoded: it has no array named (early|stride_8 or stride_4)"
    ):
        read_image(path, model.config)


@pytest.fixture
def shapes(monkeypatch) -> list[tuple[int, ...]]:
    """The [image, prompt set, token] of every call of the decoder, which is replaced by one that is fast and simple."""
    calls = []

    def fake(model: Sam, variables: Any, embeddings: jax.Array, prompts: Prompts, **_: Any) -> MaskPrediction:
        calls.append(prompts.labels.shape)
        batch = prompts.valid.shape
        logits = jnp.broadcast_to(embeddings[:, None, None, :, :, 0], (*batch, 4, *embeddings.shape[1:3]))
        return MaskPrediction(logits, jnp.zeros((*batch, 4)), prompts.valid)

    monkeypatch.setattr(folder, "predict_masks", fake)
    return calls


def run(source: Path, **options: Any) -> list[str]:
    options = {"sizes": SIZES, "mesh": make_mesh(1, jax.devices("cpu")[:1])} | options
    return [path.name for path in predict_folder(MODEL, VARIABLES, source, source.parent / "target", **options)]


def test_images_that_are_rounded_alike_are_decoded_together(source, shapes):
    sizes = Sizes(tokens=(2, 4), prompt_sets=(1, 2), images=(1, 2))
    assert run(source, sizes=sizes) == ["2.npz", "4.npz", "0.npz", "1.npz", "3.npz"]
    assert shapes == [(2, 2, 4), (1, 1, 2), (1, 2, 2), (1, 1, 4)]


def test_many_prompt_sets_are_decoded_with_fewer_images(source, shapes, monkeypatch):
    monkeypatch.setattr(folder, "AT_ONCE", 6)
    run(source, sizes=Sizes(tokens=(4,), prompt_sets=(2,), images=(1, 2, 3, 4, 5)))
    assert shapes == [(3, 2, 4), (2, 2, 4)]


def test_binary_masks(source, shapes):
    run(source, binary=True)
    for path in source.glob("*.npz"):
        with np.load(source.parent / "target" / path.name) as result, np.load(path) as image:
            assert sorted(result) == ["iou", "masks"]
            expected = np.broadcast_to(image["embedding"][..., 0] > 0, (len(image["points"]), 4, 8, 8))
            np.testing.assert_array_equal(result["masks"], expected, strict=True)


def test_finished_results_are_skipped_and_leftovers_removed(source, shapes):
    target = source.parent / "target"
    (target / ".3.npz.abc_123.tmp").mkdir(parents=True)
    (target / ".another.npz.abc_123.tmp").mkdir()
    (target / "1.npz").write_text("finished")
    assert run(source) == ["0.npz", "2.npz", "3.npz", "4.npz"]
    assert (target / "1.npz").read_text() == "finished"
    assert run(source) == []
    names = {path.name for path in target.iterdir()}
    assert names == {".another.npz.abc_123.tmp", *(f"{i}.npz" for i in range(5))}


def test_every_bad_file_is_named_after_the_others_are_done(source, shapes):
    write(source / "1.npz", embedding=EMBEDDING)
    (source / "3.npz").write_text("no archive")
    message = r"2 of 5 images were not decoded\. .*1\.npz cannot be decoded: .*3\.npz cannot be decoded: "
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            run(source)
    assert sorted(path.name for path in (source.parent / "target").iterdir()) == ["0.npz", "2.npz", "4.npz"]


def test_folders_and_meshes_that_cannot_be_used(source, monkeypatch):
    with pytest.raises(ValueError, match=r"source must be a folder with \.npz files"):
        run(source.parent)
    with pytest.raises(ValueError, match="target must be a folder other than the source"):
        predict_folder(MODEL, VARIABLES, source, source)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with pytest.raises(ValueError, match="must have devices of this process alone"):
        run(source)
