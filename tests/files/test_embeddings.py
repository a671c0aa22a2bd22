"""A store of embeddings: what is in it is whole, whoever reads it and however the writer ended."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore
from random_model import FAMILIES, random_features

from sam_jax import EmbeddingStore, EncodedImage, Sam
from sam_jax.config import TINY
from sam_jax.decoder.features import map_shapes, maps_of
from sam_jax.files.embeddings import digest_of
from sam_jax.files.manifest import Provenance

SHAPE = (4, 6, 8)
PROVENANCE = Provenance("sam", "sam_vit_b_01ec64.pth", "ec2df62732614e57", "Apache-2.0")


def image(seed: int, dtype: type = np.float32) -> EncodedImage:
    embedding = np.random.default_rng(seed).normal(size=SHAPE).astype(dtype)
    return EncodedImage(embedding, (64 - seed, 96), (600 - 10 * seed, 900))


def create(path: Path, dtype: str = "float32", provenance: Provenance = PROVENANCE) -> EmbeddingStore:
    return EmbeddingStore.create(path, {"embedding": SHAPE}, (64, 96), dtype, provenance)


@pytest.fixture
def store(tmp_path) -> EmbeddingStore:
    return create(tmp_path / "store")


def test_an_image_comes_back_bit_for_bit(store):
    store.write("a.jpg", image(1))
    read = EmbeddingStore.open(store.path).read("a.jpg")
    np.testing.assert_array_equal(read.embedding, image(1).embedding)
    assert (read.input_size, read.original_size) == ((63, 96), (590, 900))


def test_bfloat16_keeps_bfloat16_and_rounds_float32(tmp_path):
    store = create(tmp_path, "bfloat16")
    store.write("a", image(1, jnp.bfloat16))
    store.write("b", image(1)._replace(embedding=jnp.asarray(image(1).embedding)))
    read = store.read_many(["a", "b"]).embeddings
    assert read.dtype == jnp.bfloat16
    np.testing.assert_array_equal(read[0], image(1, jnp.bfloat16).embedding)
    np.testing.assert_array_equal(read[1], read[0])


def test_many_are_read_in_the_order_asked_for(store):
    for i in range(4):
        store.write(f"{i}.png", image(i))
    assert store.names() == ["0.png", "1.png", "2.png", "3.png"]
    batch = store.read_many(["2.png", "0.png", "2.png"])
    np.testing.assert_array_equal(batch.embeddings, [image(i).embedding for i in (2, 0, 2)])
    assert batch.input_sizes.tolist() == [[62, 96], [64, 96], [62, 96]]
    assert batch.original_sizes.tolist() == [[580, 900], [600, 900], [580, 900]]


def test_a_second_write_replaces_the_first(store):
    store.write("a", image(1))
    store.write("a", image(2))
    np.testing.assert_array_equal(store.read("a").embedding, image(2).embedding)
    assert store.names() == ["a"]


def test_it_says_what_it_is(store):
    assert EmbeddingStore.open(store.path) == create(store.path) == store
    attributes = json.loads((store.path / "zarr.json").read_text())["attributes"]
    assert attributes["provenance"]["sha256"] == PROVENANCE.sha256


def test_another_reader_of_zarr_reads_it(store):
    store.write("a", image(1))
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(store.path / "a")}}
    array = tensorstore.open(spec, open=True).result()
    assert (array.chunk_layout.read_chunk.shape, array.domain.labels) == (SHAPE, ("h", "w", "c"))
    np.testing.assert_array_equal(array.read().result(), image(1).embedding)


WRITER = """
import os
import signal
import sys
import numpy as np
from sam_jax import EmbeddingStore, EncodedImage, atomic

store = EmbeddingStore.open(sys.argv[1])
for name in "abcd":
    if name == "c":  # its chunk is written, its name is not there yet
        atomic._flush = lambda folder: os.kill(os.getpid(), signal.SIGKILL)
    store.write(name, EncodedImage(np.full(store.shapes["embedding"], ord(name), np.float32), (1, 2), (3, 4)))
"""


def test_a_killed_writer_leaves_whole_images_and_another_finishes(store):
    writer = subprocess.run([sys.executable, "-c", WRITER, store.path], check=False)
    assert writer.returncode == -signal.SIGKILL
    assert store.names() == ["a", "b"]
    batch = store.read_many(["a", "b"])
    np.testing.assert_array_equal(batch.embeddings, np.full((2, *SHAPE), [[[[97]]], [[[98]]]], np.float32))
    (leftover,) = (path for path in store.path.iterdir() if path.name.startswith("."))
    assert any(path.is_file() for path in leftover.rglob("*"))
    store.remove_leftovers(["d"])  # that of "c" may be another process's
    assert leftover.exists()
    store.remove_leftovers(["c", "d"])
    assert not leftover.exists()
    store.write("c", image(1))
    assert store.names() == ["a", "b", "c"]


def test_damage_is_noticed(store):
    store.write("a", image(1))
    store.write("b", image(2))
    chunk = next(path for path in (store.path / "a").rglob("*") if path.is_file() and path.name != "zarr.json")
    content = bytearray(chunk.read_bytes())
    content[100] ^= 1
    chunk.write_bytes(content)
    (store.path / "b/zarr.json").write_text("{")
    for name in ("a", "b"):
        with pytest.raises(ValueError, match=f"The embedding of {name} in .* is damaged"):
            store.read(name)


def test_missing_images_are_named(store):
    store.write("a", image(1))
    with pytest.raises(ValueError, match=r"has no embedding of b\.jpg, c\.jpg"):
        store.read_many(["b.jpg", "a", "c.jpg"])


def test_an_image_of_another_size_is_another_image(store):
    store.write("a.jpg", image(1))
    assert store.read("a.jpg", (590, 900)).original_size == (590, 900)
    with pytest.raises(ValueError, match=r"a\.jpg is 900 pixels high and 590 wide, .* 590 pixels high and 900 wide"):
        store.read("a.jpg", (900, 590))


def test_an_image_of_other_pixels_is_another_image(store):
    pixels = np.arange(90 * 160 * 3).reshape(90, 160, 3).astype(np.uint8)
    assert digest_of(pixels) != digest_of(pixels.reshape(160, 90, 3))  # the size counts
    store.write("d.png", image(4), digest_of(pixels))
    assert store.has("d.png", digest_of(pixels.copy(order="F")))
    assert not store.has("d.png", digest_of(pixels + 1))
    with pytest.raises(ValueError, match=r"d\.png has been changed since its embedding in .* was made"):
        store.read("d.png", digest=digest_of(pixels + 1))
    np.testing.assert_array_equal(store.read("d.png", digest=digest_of(pixels)).embedding, image(4).embedding)


def test_a_store_is_of_one_encoder(store):
    with pytest.raises(ValueError, match=r"another provenance: .*ec2df62732614e57"):
        create(store.path, provenance=Provenance("sam", "other.pth", "0", None))
    with pytest.raises(ValueError, match="another dtype: float32, and bfloat16"):
        create(store.path, "bfloat16")
    with pytest.raises(ValueError, match=r"another shape: {'embedding': \(4, 6, 8\)}, and {'embedding': \(4, 6, 9\)}"):
        EmbeddingStore.create(store.path, {"embedding": (4, 6, 9)}, (64, 96), "float32", PROVENANCE)
    with pytest.raises(ValueError, match=r"of each image embedding \[4, 6, 8\], got embedding \[2, 6, 8\] for a"):
        store.write("a", image(1)._replace(embedding=np.zeros((2, 6, 8), np.float32)))


def test_other_folders_are_left_alone(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="something else"):
        create(tmp_path)
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ValueError, match="is no store of embeddings"):
            EmbeddingStore.open(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


@pytest.mark.parametrize("name", ["", "..", "a/b", "/a", ".hidden"])
def test_a_name_stays_in_the_store(name, store):
    with pytest.raises(ValueError, match="single part of a path"):
        store.write(name, image(1))
    with pytest.raises(ValueError, match="single part of a path"):
        store.read(name)


@pytest.fixture(params=["sam_hq", "sam2"])
def family(request, tmp_path) -> tuple[EmbeddingStore, list[EncodedImage]]:
    """A store of images with several maps, and two of them."""
    model = Sam(dataclasses.replace(TINY, **FAMILIES[request.param]))
    images = [EncodedImage(random_features(model=model, seed=i), (128, 100), (640, 500)) for i in range(2)]
    return EmbeddingStore.create(tmp_path, map_shapes(model.config), (128, 128), "float32", PROVENANCE), images


def test_all_maps_of_an_image_come_back(family):
    store, images = family
    for i, image in enumerate(images):
        store.write(f"{i}.png", image, "digest")
    store = EmbeddingStore.open(store.path)
    assert store.names() == ["0.png", "1.png"]
    read = store.read("1.png", (640, 500), "digest")
    assert (read.input_size, read.original_size) == ((128, 100), (640, 500))
    jax.tree.map(np.testing.assert_array_equal, read.embedding, images[1].embedding)
    both = jax.tree.map(lambda *x: np.stack(x), *(image.embedding for image in images))
    jax.tree.map(np.testing.assert_array_equal, store.read_many(["0.png", "1.png"]).embeddings, both)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(store.path / "0.png/embedding")}}
    np.testing.assert_array_equal(tensorstore.open(spec).result().read().result(), both.embedding[0])


@pytest.mark.usefixtures("untyped")
def test_maps_must_be_those_of_the_store(family):
    store, (image, _) = family
    *_, (last, values) = maps_of(image.embedding).items()
    for features, message in (
        (image.embedding.embedding, r"got embedding \[8, 8, 32\] for a"),
        (dataclasses.replace(image.embedding, **{last: values[:1]}), rf"of each image .*got .*{last} \[1, .* for a"),
        (dataclasses.replace(image.embedding, **{last: values.astype(int)}), f"{last} must be floats, got .* for a"),
    ):
        with pytest.raises(ValueError, match=message):
            store.write("a", image._replace(embedding=features))
    assert "a" not in store


def test_damage_to_any_map_is_noticed(family):
    store, (image, _) = family
    store.write("a", image)
    last = list(store.shapes)[-1]
    other = EmbeddingStore.create(store.path / ".other", {"embedding": (1, 2, 8)}, (128, 128), "float32", PROVENANCE)
    other.write("b", image._replace(embedding=np.zeros((1, 2, 8), np.float32)))
    shutil.rmtree(store.path / "a" / last)
    with pytest.raises(ValueError, match=r"The embedding of a in .* is damaged"):
        store.read("a")
    shutil.copytree(other.path / "b", store.path / "a" / last)  # an array of another shape
    with pytest.raises(ValueError, match=r"The embedding of a in .* is damaged"):
        store.read("a")


def test_an_older_store_of_one_map_is_read(store):
    store.write("a", image(1))
    description = json.loads((store.path / "zarr.json").read_text())
    description["attributes"]["shape"] = description["attributes"].pop("shapes")["embedding"]
    (store.path / "zarr.json").write_text(json.dumps(description))
    assert EmbeddingStore.open(store.path) == store
    np.testing.assert_array_equal(EmbeddingStore.open(store.path).read("a").embedding, image(1).embedding)
