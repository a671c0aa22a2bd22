"""Checkpoints with an image encoder: folders, files and the command that converts between them."""

import dataclasses
import functools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from random_encoder import SMALL_EFFICIENT_VIT, SMALL_TINY_VIT

import sam_jax
from sam_jax.commands import cli
from sam_jax.config import TINY
from sam_jax.convert import own_metadata, read_tensors, write_tensors
from sam_jax.convert.encoders import TABLES
from sam_jax.convert.tables.rules import torch_shapes
from sam_jax.encoders.config import VIT_TINY
from sam_jax.encoders.encoder import make_encoder
from sam_jax.errors import CheckpointError
from sam_jax.files.manifest import Manifest
from sam_jax.images.preprocess import prepare

VIT = dataclasses.replace(VIT_TINY, window_size=8)
"""Of which the shapes do not tell everything."""
TINY_VIT = dataclasses.replace(SMALL_TINY_VIT, out_width=32, image_size=(128, 128))
EFFICIENT_VIT = dataclasses.replace(
    SMALL_EFFICIENT_VIT, out_width=32, grid_size=(8, 8), image_size=(64, 64), prompt_frame=(128, 128)
)
CONFIGS = {"vit": VIT, "tiny_vit": TINY_VIT, "efficient_vit": EFFICIENT_VIT}
TITLES = {"vit": "ViT", "tiny_vit": "TinyViT", "efficient_vit": "EfficientViT"}
DECODER = dataclasses.replace(TINY, final_norm_eps=1e-3)
"""Its heads, sizes and epsilon are unlike any family's."""


@functools.cache
def tensors_of(kind: str, naming: str = "meta") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = torch_shapes(DECODER, naming) | torch_shapes(CONFIGS[kind], naming, TABLES[kind])
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module", params=CONFIGS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def file(kind, tmp_path_factory) -> Path:
    """A file with both, and with our settings."""
    path = tmp_path_factory.mktemp("file") / "whole.safetensors"
    write_tensors(path, tensors_of(kind), metadata=own_metadata(DECODER, CONFIGS[kind], "medsam"))
    return path


@pytest.fixture(scope="module")
def folder(file, tmp_path_factory) -> Path:
    """A folder with both."""
    path = tmp_path_factory.mktemp("folder") / "whole"
    model, variables = sam_jax.load(file)
    sam_jax.save(path, model, variables, *sam_jax.load_encoder(file))
    return path


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command in this process; return what it prints, or its error."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["sam-jax", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "300")
        try:
            cli.main()
        except SystemExit as exit_:
            return str(exit_.code)
        return capsys.readouterr().out

    return run


def bits(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: (str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes()), tree)


def assert_loads(path: Path, kind: str) -> None:
    model, variables = sam_jax.load(path)
    encoder, of_encoder = sam_jax.load_encoder(path)
    assert (model.config, encoder) == (DECODER, make_encoder(CONFIGS[kind]))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves((variables, of_encoder)))
    tensors = sam_jax.convert.to_torch(model, variables) | sam_jax.convert.encoder_to_torch(encoder, of_encoder)
    assert bits(tensors) == bits(tensors_of(kind))


def test_a_file_with_settings_is_loaded_as_it_was_written(file, kind):
    assert_loads(file, kind)


def test_a_folder_holds_both(folder, kind):
    assert_loads(folder, kind)


def test_the_encoder_makes_an_embedding(folder):
    encoder, variables = sam_jax.load_encoder(folder)
    frame, _ = prepare(np.zeros((30, 40, 3), np.uint8), encoder.config.image_size)
    assert encoder.apply(variables, jax.numpy.asarray(frame)).shape == (8, 8, 32)


def test_the_decoder_does_not_read_the_encoder_s_files(folder, kind, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(copy / "encoder")
    assert sam_jax.load(copy)[0].config == DECODER
    with pytest.raises(CheckpointError, match=r"is not whole: encoder/.* is missing"):
        sam_jax.load_encoder(copy)


def test_the_encoder_does_not_read_the_decoder_s_files(folder, kind, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(copy / "d")
    assert sam_jax.load_encoder(copy)[0].config == CONFIGS[kind]
    with pytest.raises(CheckpointError, match=r"is not whole: d/.* is missing"):
        sam_jax.load(copy)


def test_a_folder_without_an_encoder_says_how_to_make_one_with_it(file, tmp_path):
    sam_jax.save(tmp_path / "decoder", *sam_jax.load(file))
    with pytest.raises(CheckpointError, match=r"has no image encoder\. To keep it, .* `sam-jax convert --encoder`"):
        sam_jax.load_encoder(tmp_path / "decoder")


def test_an_encoder_s_variables_must_be_its_own(file, tmp_path):
    model, variables = sam_jax.load(file)
    encoder, of_encoder = sam_jax.load_encoder(file)
    for wrong in (None, {"params": {}}, of_encoder | {"extra": np.zeros(3, np.float32)}):
        with pytest.raises(CheckpointError, match=r"^The encoder's variables do not fit the model's config"):
            sam_jax.save(tmp_path / "x", model, variables, encoder, wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_collection_without_arrays_is_as_good_as_none(file, kind, tmp_path):
    encoder, of_encoder = sam_jax.load_encoder(file)
    sam_jax.save(tmp_path / "x", *sam_jax.load(file), encoder, of_encoder | {"intermediates": {}})
    assert_loads(tmp_path / "x", kind)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ({"kind": "resnet"}, "must be one of vit, tiny_vit, efficient_vit, hiera, got 'resnet'"),
        (None, "must be a JSON object with a kind, got None"),
        ({"kind": "vit", "depth": 10**12}, "1000000000000 blocks"),
        ({"kind": "vit"}, r"missing:(\n  params/.*)*\n  params/block_4"),
    ],
)
def test_a_folder_with_other_settings_is_refused(folder, encoder, message, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    values = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(values | {"encoder": encoder}))
    with pytest.raises(CheckpointError, match=message):
        sam_jax.load_encoder(copy)


def test_convert_keeps_the_encoder_where_it_is_asked_to(run, file, kind, tmp_path):
    run("convert", file, "-o", tmp_path / "small")
    run("convert", file, "-o", tmp_path / "whole", "--encoder")
    assert Manifest.read(tmp_path / "small").encoder is None
    assert not (tmp_path / "small" / "encoder").exists()
    assert_loads(tmp_path / "whole", kind)
    assert Manifest.read(tmp_path / "whole").provenance.family == "medsam"


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_convert_there_and_back_is_bit_for_bit(run, file, kind, suffix, tmp_path):
    if suffix == "pth":
        pytest.importorskip("torch", reason="PyTorch is an optional dependency")
    back = tmp_path / f"back.{suffix}"
    run("convert", file, "-o", tmp_path / "whole", "--encoder")
    run("convert", tmp_path / "whole", "-o", back)
    assert bits(read_tensors(back)) == bits(tensors_of(kind))
    if suffix == "safetensors":
        assert_loads(back, kind)
    run("convert", tmp_path / "whole", "-o", tmp_path / "again")
    assert_loads(tmp_path / "again", kind)


def test_hugging_face_s_names_are_written_for_a_vit_alone(run, file, kind, tmp_path):
    out = run("convert", file, "-o", tmp_path / "hf.safetensors", "--encoder", "--naming", "hf")
    if kind == "vit":
        assert read_tensors(tmp_path / "hf.safetensors").keys() == tensors_of(kind, "hf").keys()
        assert_loads(tmp_path / "hf.safetensors", kind)
    else:
        assert f"Hugging Face has no names for {TITLES[kind]}" in out
        assert list(tmp_path.iterdir()) == []


def test_a_dtype_is_for_the_parameters_of_both(run, file, kind, tmp_path):
    run("convert", file, "-o", tmp_path / "x.safetensors", "--encoder", "--dtype", "bfloat16")
    kept = ("gaussian_matrix", "running_mean", "running_var")
    for name, array in read_tensors(tmp_path / "x.safetensors").items():
        assert array.dtype == (np.float32 if name.endswith(kept) else ml_dtypes.bfloat16), name


def test_a_file_without_an_encoder_is_refused(run, kind, tmp_path):
    decoder = {name: array for name, array in tensors_of(kind).items() if not name.startswith("image_encoder.")}
    write_tensors(tmp_path / "decoder.safetensors", decoder)
    message = run("convert", tmp_path / "decoder.safetensors", "-o", tmp_path / "x", "--encoder")
    assert message == "sam-jax: The checkpoint holds no image encoder."
    assert not (tmp_path / "x").exists()
    with pytest.raises(CheckpointError, match="holds no image encoder"):
        sam_jax.load_encoder(tmp_path / "decoder.safetensors")


def test_inspect_tells_the_encoder(run, file, folder, kind, tmp_path):
    name = f"{TITLES[kind]} of {CONFIGS[kind].image_size[0]} x {CONFIGS[kind].image_size[1]} pixels"
    own = [array.size for name, array in tensors_of(kind).items() if name.startswith("image_encoder.")]
    out = run("inspect", file)
    assert f"{name}, {len(own)}: {sum(own):,} float32" in out
    assert "ignored none" in " ".join(out.split())
    assert f"{name}, " in run("inspect", folder)
    assert "MedSAM (medsam)" in out


def test_inspect_tells_an_encoder_that_is_not_whole(run, kind, tmp_path):
    tensors = dict(tensors_of(kind))
    lost = "image_encoder.norm.bias (32,)" if kind == "efficient_vit" else "image_encoder.neck.1.bias (32,)"
    del tensors[lost.partition(" ")[0]]
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors")
    out = run("inspect", tmp_path / "x.safetensors")
    wanted = "so that its shapes do not tell which blocks are global" if kind == "vit" else lost
    assert wanted in " ".join(out.split())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "The entry sam_jax of the safetensors metadata is no sound JSON"),
        ("[]", "is a JSON list, and an object is wanted"),
        ("[" * 100_000, "is no sound JSON"),
        ('{"decoder": {}, "decoder": {}}', "a key is repeated"),
        ("{}", "The decoder's settings beside the weights must be an object, got None"),
        ('{"decoder": {"widht": 3}}', "Unknown settings for SamConfig: widht"),
        ('{"decoder": {"depth": 1000000000}}', "asks for 1000000000 layers or masks"),
        ('{"decoder": {"image_size": 3}}', "SamConfig.image_size must be two positive integers"),
        ('{"decoder": {}, "family": []}', r"name a family \[\], which is not known"),
        ('{"decoder": {}}', "misshapen:\n"),
    ],
)
def test_bad_metadata_is_one_clear_error(text, message, tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(tensors_of("vit"), path, {"sam_jax": text})
    with pytest.raises(CheckpointError, match=message):
        sam_jax.load(path)


def test_metadata_of_another_program_is_no_settings(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(tensors_of("vit"), path, {"format": "pt", "config": "{}", "family": "?"})
    assert sam_jax.load(path)[0].config.heads == 8


def test_a_family_that_is_asked_for_wins_over_the_settings(file, kind):
    config = sam_jax.load(file, family="lite_medsam")[0].config
    assert (config.image_size, config.final_norm_eps, config.heads) == (
        (128, 128) if kind == "vit" else (256, 256),
        1e-5,
        2,
    )
    encoder, _ = sam_jax.load_encoder(file, family="lite_medsam")
    assert encoder.config.prompt_frame == ((128, 128) if kind == "vit" else (256, 256))
