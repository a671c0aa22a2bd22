"""Checkpoints by the name of their repository, from a server on this machine that speaks the Hub's protocol."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import jax
import numpy as np
import pytest
import safetensors.numpy
from hub_server import FakeRepository, Files, HubServer, running
from huggingface_hub import constants
from random_model import MODEL
from torch_writer import write_torch_zip

import sam_jax
from sam_jax.commands.demo import SMALL
from sam_jax.config import TINY
from sam_jax.convert.download import Source, locate
from sam_jax.convert.hub import Repository
from sam_jax.convert.state_dict import to_torch
from sam_jax.errors import CheckpointError
from sam_jax.files.checkpoints import provenance_of
from sam_jax.files.manifest import Manifest, sha256

NAME = "someone/tiny-sam"
OLD, NEW = "0" * 40, "1" * 40
SETTINGS = {
    "model_type": "sam",
    "prompt_encoder_config": {"image_size": 128, "patch_size": 16, "mask_input_channels": 8},
    "vision_config": {"image_size": 128, "patch_size": 16},
    "mask_decoder_config": {"hidden_size": 32, "num_attention_heads": 2, "mlp_dim": 64, "iou_head_hidden_dim": 32},
}
Weights = dict[str, np.ndarray]


@pytest.fixture
def server(monkeypatch, tmp_path) -> Iterator[HubServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.chdir(tmp_path)
    with running() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server
    huggingface_hub.close_session()


@pytest.fixture(scope="module")
def weights(variables) -> Weights:
    return to_torch(MODEL, variables, "hf")


@pytest.fixture(scope="module")
def folder(weights) -> Files:
    """What transformers uploads."""
    return {
        ".gitattributes": b"",
        "README.md": b"A model card.",
        "config.json": json.dumps(SETTINGS).encode(),
        "model.safetensors": safetensors.numpy.save(weights),
        "pytorch_model.bin": b"not needed, and not downloaded",
        "other/model.onnx": b"neither",
    }


@pytest.fixture
def upload(server) -> Callable[..., FakeRepository]:
    def upload(files: Files, old: Files | None = None) -> FakeRepository:
        commits = {NEW: files} if old is None else {OLD: old, NEW: files}
        repository = FakeRepository(commits, {"main": NEW, "v1.0": OLD, "refs/pr/1": NEW})
        server.repositories[NAME] = repository
        return repository

    return upload


def refusal(name: str = NAME) -> str:
    with pytest.raises(CheckpointError) as error:
        sam_jax.load(name)
    assert "\n" not in str(error.value)
    return str(error.value)


def same(one, other) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, one, other))


def go_offline(server: HubServer, monkeypatch) -> None:
    with running() as closed:
        nobody = closed.url
    monkeypatch.setenv("HF_ENDPOINT", nobody)


def test_a_folder_is_loaded_by_its_name(server, upload, folder, variables):
    upload(folder)
    model, loaded = sam_jax.load(NAME)
    assert model.config == dataclasses.replace(TINY, block_norm_eps=1e-6)
    assert same(loaded, variables)
    assert sorted(server.sent) == ["config.json", "model.safetensors"]
    sam_jax.load(f"{NAME}@main")
    assert len(server.sent) == 2


def test_the_provenance_says_the_repository_the_revision_and_the_commit(upload):
    upload({"small.safetensors": SMALL.read_bytes()})
    found = provenance_of(f"{NAME}@refs/pr/1")
    assert (found.source, found.commit, found.sha256) == (f"{NAME}@refs/pr/1", NEW, sha256(SMALL))


def test_a_predictor_takes_the_name(upload):
    upload({"small.safetensors": SMALL.read_bytes()})
    predictor, same_one = sam_jax.Predictor.load(NAME), sam_jax.Predictor.load(SMALL)
    assert same(predictor.variables, same_one.variables)
    assert same(predictor.encoder_variables, same_one.encoder_variables)


def test_a_revision_is_pinned(upload, folder, weights, variables):
    doubled = folder | {"model.safetensors": safetensors.numpy.save({name: 2 * x for name, x in weights.items()})}
    upload(doubled, old=folder)
    for revision, commit in (("v1.0", OLD), (OLD, OLD), ("refs/pr/1", NEW)):
        assert same(sam_jax.load(f"{NAME}@{revision}")[1], variables) == (commit == OLD)
        assert locate(f"{NAME}@{revision}").name == f"{NAME}@{revision}"
        assert locate(f"{NAME}@{revision}").commit == commit


def test_a_branch_that_moved_is_downloaded_again(upload, folder, variables):
    repository = upload(folder, old={**folder, "model.safetensors": b"damaged"})
    repository.revisions["main"] = OLD
    assert "model.safetensors" in refusal()
    repository.revisions["main"] = NEW
    assert same(sam_jax.load(NAME)[1], variables)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors"])
def test_a_file_of_any_other_name_is_found(suffix, server, upload, variables, tmp_path):
    tensors = to_torch(MODEL, variables, "meta")
    path = tmp_path / f"some{suffix}"
    if suffix == ".safetensors":
        safetensors.numpy.save_file(tensors, path)
    else:
        write_torch_zip(path, tensors)
    name = f"weights/tiny{suffix}"
    upload({"README.md": b"A model card.", name: path.read_bytes()})
    assert same(sam_jax.load(NAME)[1], variables)
    assert server.sent == [name]


def test_a_pickle_is_not_run(upload, tmp_path):
    marker = tmp_path / "it ran"
    attack = f"cos\nsystem\n(S'touch \"{marker}\"'\ntR.".encode()
    upload({"sam.pt": attack})
    assert "This is no PyTorch checkpoint" in refusal()
    assert not marker.exists()


def parts(weights: Weights, stem: str, suffix: str, pack: Callable[[Weights], bytes]) -> Files:
    """Spread weights over two files, with an index."""
    names = [f"{stem}-0000{number}-of-00002.{suffix}" for number in (1, 2)]
    halves = [dict([*weights.items()][half::2]) for half in (0, 1)]
    index = {tensor: name for name, half in zip(names, halves, strict=True) for tensor in half}
    files = {name: pack(half) for name, half in zip(names, halves, strict=True)}
    return files | {f"{stem}.{suffix}.index.json": json.dumps({"weight_map": index}).encode()}


def test_weights_in_several_files_are_loaded(server, upload, weights, variables, tmp_path):
    files = parts(weights, "model", "safetensors", safetensors.numpy.save)
    pickles = parts(weights, "pytorch_model", "bin", lambda half: write_torch_zip(tmp_path / "x", half).read_bytes())
    upload({"config.json": json.dumps(SETTINGS).encode(), **pickles, **files})
    assert same(sam_jax.load(NAME)[1], variables)
    assert sorted(server.sent) == ["config.json", *sorted(files)]


def test_several_checkpoints_are_listed(server, upload):
    upload({"sam_b.pth": b"", "sam_l.pth": b"", "config.json": b"{}"})
    assert f"{NAME}@main of the Hugging Face Hub has several checkpoints (sam_b.pth, sam_l.pth)" in refusal()
    assert server.sent == []


def test_a_repository_without_weights_is_told(server, upload):
    upload({"README.md": b"", "model.onnx": b""})
    assert "has no weights: none of its 2 files ends in .safetensors, .pt, .pth, .bin." in refusal()
    assert server.sent == []


def test_what_is_not_there_is_told(upload, folder):
    assert refusal().startswith(f"There is no {NAME} on this machine, and no such repository on the Hugging Face Hub")
    repository = upload(folder)
    assert refusal(f"{NAME}@v2") == f"{NAME} of the Hugging Face Hub has no revision v2."
    repository.gated = True
    assert refusal().startswith(f"{NAME} is open only to whom its owners let in: ask for access")


def test_a_name_that_the_hub_does_not_allow_is_no_repository(server):
    assert refusal("no--such/folder").startswith("There is no no--such/folder on this machine, and no such repository")


@pytest.mark.parametrize("name", ["../../../../evil.pt", "/tmp/evil.pt"])
def test_a_name_that_leads_out_of_the_cache_is_refused(name, server, upload, tmp_path):
    upload({name: b"evil"})
    assert refusal().startswith(f"Could not download {NAME}@main from the Hugging Face Hub: ")
    assert not list(tmp_path.rglob("evil*"))


def test_a_download_that_is_cut_short_leaves_nothing(server, upload, folder, variables, tmp_path):
    upload(folder)
    server.cut = 1
    message = refusal()
    assert message.startswith(f"Could not download {NAME}@main from the Hugging Face Hub: ")
    size = len(folder["config.json"])
    assert f"should be of size {size} but has size {size - 1}" in message
    assert not [path for path in (tmp_path / "cache").rglob("*/blobs/*") if path.is_file()]
    server.cut = 0
    assert same(sam_jax.load(NAME)[1], variables)


def test_without_a_connection_the_cache_is_used(server, upload, folder, variables, monkeypatch):
    upload(folder, old=folder)
    sam_jax.load(NAME)
    server.broken = True
    assert same(sam_jax.load(NAME)[1], variables)
    go_offline(server, monkeypatch)
    assert same(sam_jax.load(NAME)[1], variables)
    assert locate(NAME).commit == locate(f"{NAME}@{NEW}").commit == NEW
    message = f"There is no {NAME} on this machine, and the Hugging Face Hub cannot be reached: "
    assert refusal(f"{NAME}@v1.0").startswith(message)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same(sam_jax.load(NAME)[1], variables)


def test_settings_alone_in_the_cache_are_no_checkpoint(server, upload, folder, monkeypatch):
    upload(folder)
    huggingface_hub.hf_hub_download(NAME, "config.json", endpoint=server.url)
    go_offline(server, monkeypatch)
    assert "cannot be reached" in refusal()


def test_a_path_that_exists_wins(server, tmp_path):
    (tmp_path / NAME).mkdir(parents=True)
    assert locate(NAME) == Source(Path(NAME), "tiny-sam")


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("facebook/sam2.1-hiera-tiny", ("facebook/sam2.1-hiera-tiny", "main")),
        ("a/b@refs/pr/1", ("a/b", "refs/pr/1")),
        ("a/b@v1.0", ("a/b", "v1.0")),
        *(
            (text, None)
            for text in ("sam_vit_b", "a/b/c", "./a/b", "../a", "/a/b", "~/a", "a/b@", "a/b@../c", "a/b.pth")
        ),
    ],
)
def test_only_a_name_is_a_repository(text, parsed):
    assert Repository.parse(text) == parsed


def test_the_command_follows_the_environment(server, upload, folder, tmp_path):
    upload(folder)
    environment = os.environ | {"HF_HOME": str(tmp_path / "home")}
    script = "from sam_jax.commands import cli; cli.main()"

    def run(*arguments: object) -> str:
        command = [sys.executable, "-W", "error", "-P", "-c", script, *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout

    assert NEW in run("convert", f"{NAME}@main", "-o", tmp_path / "out")
    assert Manifest.read(tmp_path / "out").provenance.commit == NEW
    assert f"{NAME}@main" in run("inspect", NAME)
    assert (tmp_path / "home" / "hub").is_dir()
