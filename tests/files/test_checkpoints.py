"""The folder that `save` writes: exact, whole or absent, and refused when anything about it is wrong."""

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax.config import TINY
from sam_jax.decoder.model import Sam
from sam_jax.errors import CheckpointError
from sam_jax.files.checkpoints import restore, save
from sam_jax.files.manifest import Manifest, Provenance

MODEL = Sam(TINY)
PROVENANCE = Provenance(family="sam", source="sam.pth", sha256="0" * 64, licence="Apache-2.0")


@pytest.fixture(scope="module")
def pristine(variables, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pristine") / "tiny"
    save(path, MODEL, variables, provenance=PROVENANCE)
    return path


@pytest.fixture
def folder(pristine, tmp_path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "tiny"))


def bits(variables):
    return jax.tree.map(lambda leaf: (leaf.dtype, np.asarray(leaf).tobytes()), variables)


def edit(folder: Path, **changes) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | changes))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_round_trip_is_bit_for_bit(dtype, variables, tmp_path):
    variables = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf).astype(dtype)), variables)
    save(tmp_path / "tiny", MODEL, variables, provenance=PROVENANCE)
    model, restored, provenance = restore(tmp_path / "tiny")
    assert model == MODEL
    assert provenance == PROVENANCE
    assert bits(restored) == bits(variables)
    assert all(leaf.devices() == {jax.devices()[0]} for leaf in jax.tree.leaves(restored))


def test_special_values_survive(variables, tmp_path):
    special = np.array([np.nan, -0.0, np.inf, 1e-45], np.float32)
    variables = jax.tree.map(lambda leaf: np.resize(special, leaf.shape), variables)
    save(tmp_path / "tiny", MODEL, variables)
    assert bits(restore(tmp_path / "tiny")[1]) == bits(variables)


def test_the_folder_says_what_it_is(folder):
    values = json.loads((folder / "config.json").read_text())
    assert values["provenance"] == dataclasses.asdict(PROVENANCE)
    assert values["config"]["width"] == TINY.width
    assert values["arrays"]["constants/prompt_encoder/gaussian_matrix"] == "float32[2,16]"
    assert values["version"]


def test_a_folder_from_before_commits_were_written_down_is_read(folder):
    known = dataclasses.asdict(PROVENANCE)
    del known["commit"]
    edit(folder, provenance=known)
    assert Manifest.read(folder).provenance == PROVENANCE


def test_variables_of_another_model_are_not_saved(variables, tmp_path):
    wrong = jax.tree.map(lambda leaf: leaf, variables)
    del wrong["constants"]
    wrong["params"]["extra"] = np.zeros(3)
    wrong["params"]["prompt_encoder"]["no_mask_embedding"] = np.zeros(3)
    wrong["params"]["prompt_encoder"]["not_a_point_embedding"] = np.zeros(TINY.width, np.int32)
    with pytest.raises(CheckpointError) as error:
        save(tmp_path / "tiny", MODEL, wrong)
    for part in (
        "1 missing:\n  constants/prompt_encoder/gaussian_matrix (2, 16)",
        "1 unexpected:\n  params/extra (3,)",
        "1 misshapen:\n  params/prompt_encoder/no_mask_embedding: got (3,), wanted (32,)",
        "1 not float:\n  params/prompt_encoder/not_a_point_embedding: int32",
    ):
        assert part in str(error.value)
    assert os.listdir(tmp_path) == []


def test_an_existing_path_is_kept_unless_asked(folder, variables):
    with pytest.raises(FileExistsError, match="exists already"):
        save(folder, MODEL, variables)
    doubled = jax.tree.map(lambda leaf: 2 * np.asarray(leaf), variables)
    save(folder, MODEL, doubled, overwrite=True)
    assert bits(restore(folder)[1]) == bits(doubled)


def test_a_folder_of_other_things_is_never_replaced(variables, tmp_path):
    (tmp_path / "home" / "photos").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="something else"):
        save(tmp_path / "home", MODEL, variables, overwrite=True)
    assert (tmp_path / "home" / "photos").is_dir()


def test_restores_on_one_device_what_eight_devices_held(variables, tmp_path):
    script = """
        import sys, jax, numpy as np
        from jax.sharding import Mesh, NamedSharding, PartitionSpec
        from sam_jax.files.checkpoints import load, save
        model, variables = load(sys.argv[1])
        mesh = Mesh(np.array(jax.devices()), "x")
        def spread(leaf):
            axes = [None if size % 8 else "x" for size in leaf.shape[:1]]
            return NamedSharding(mesh, PartitionSpec(*axes))
        variables = jax.device_put(variables, jax.tree.map(spread, variables))
        assert any(not leaf.is_fully_replicated for leaf in jax.tree.leaves(variables))
        save(sys.argv[2], model, variables)
    """
    save(tmp_path / "one", MODEL, variables)
    python(script, tmp_path / "one", tmp_path / "eight", XLA_FLAGS="--xla_force_host_platform_device_count=8")
    assert bits(restore(tmp_path / "eight")[1]) == bits(variables)


def test_one_process_of_two_saves_and_loads_without_the_other(folder, tmp_path):
    script = """
        import pathlib, sys, time, jax
        address, index, source, target = sys.argv[1:]
        jax.distributed.initialize(address, 2, int(index))
        assert len(jax.devices()) == 2
        from sam_jax.files.checkpoints import load, save
        if index == "0":
            save(target, *load(source))
        while not pathlib.Path(target).exists():
            time.sleep(0.05)
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    other = threading.Thread(target=python, args=(script, address, 1, folder, tmp_path / "new"))
    other.start()
    python(script, address, 0, folder, tmp_path / "new")
    other.join()
    assert bits(restore(tmp_path / "new")[1]) == bits(restore(folder)[1])


def python(script: str, *arguments: object, code: int = 0, **environment: str) -> None:
    command = [sys.executable, "-W", "error", "-P", "-c", textwrap.dedent(script), *map(str, arguments)]
    result = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == code, result.stderr


KILL = """
    import os, signal, sys
    from sam_jax import atomic
    from sam_jax.files import checkpoints
    from sam_jax.files import manifest
    def kill(*_):
        os.kill(os.getpid(), signal.SIGKILL)
    where, source, target = sys.argv[1:]
    setattr(*{
        "before the arrays": (checkpoints.ocp.StandardCheckpointer, "save", kill),
        "before the manifest": (manifest.Manifest, "write", kill),
        "before the rename": (atomic, "_flush", kill),
        "after the rename": (atomic.tempfile.TemporaryDirectory, "cleanup", kill),
    }[where])
    model, variables = checkpoints.load(source)
    checkpoints.save(target, model, variables, overwrite=True)
"""


@pytest.mark.parametrize("where", ["before the arrays", "before the manifest", "before the rename", "after the rename"])
def test_a_killed_save_leaves_the_old_or_the_new(where, folder, variables, tmp_path):
    doubled = jax.tree.map(lambda leaf: 2 * np.asarray(leaf), variables)
    save(tmp_path / "doubled", MODEL, doubled)
    python(KILL, where, tmp_path / "doubled", folder, code=-signal.SIGKILL)
    assert bits(restore(folder)[1]) == bits(doubled if where == "after the rename" else variables)
    save(folder, MODEL, doubled, overwrite=True)
    assert bits(restore(folder)[1]) == bits(doubled)


def test_a_killed_first_save_leaves_nothing_to_load(folder, tmp_path):
    python(KILL, "before the manifest", folder, tmp_path / "new", code=-signal.SIGKILL)
    assert not (tmp_path / "new").exists()
    unfinished = [path for path in tmp_path.rglob("new") if path.is_dir()]
    assert len(unfinished) == 1
    with pytest.raises(CheckpointError, match="not a finished one"):
        restore(unfinished[0])


@pytest.mark.parametrize("interruption", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("step", ["of", "write"])
def test_an_interrupted_save_leaves_nothing(interruption, step, folder, variables, monkeypatch):
    def interrupted(*_):
        raise interruption

    monkeypatch.setattr(Manifest, step, interrupted)
    for target in (folder, folder.with_name("new")):
        with pytest.raises(interruption):
            save(target, MODEL, variables, overwrite=True)
    assert os.listdir(folder.parent) == ["tiny"]
    assert bits(restore(folder)[1]) == bits(variables)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_every_file_of_the_folder_is_guarded(damage, folder):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "config.json"]
    assert len(files) > 5
    for path in files:
        content = path.read_bytes()
        if damage == "remove":
            path.unlink()
        elif damage == "cut":
            path.write_bytes(content[:-1])
        else:
            path.write_bytes(bytes([content[0] ^ 1]) + content[1:] if content else b"\0")
        unchanged = damage == "cut" and not content
        if not unchanged:
            with pytest.raises(CheckpointError, match=path.name):
                restore(folder)
        path.write_bytes(content)
    restore(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"surprise": 1}, "with the keys arrays, config"),
        ({"config": {"widht": 32}}, "Unknown settings for SamConfig: widht"),
        ({"config": {"width": "wide"}}, "SamConfig.width must be a positive integer"),
        ({"config": None}, "config must be a JSON object"),
        ({"config": {}}, r"misshapen:\n  .*got .*, wanted"),
        ({"provenance": {"family": "sam"}}, "provenance must be a JSON object with the keys"),
        ({"provenance": {"family": 1, "source": None, "sha256": None, "licence": None}}, "family must be a text"),
        ({"arrays": {"params/x": "int32[3]"}}, "an array must be described like float32"),
        ({"arrays": {"params/x": [3]}}, "an array must be described like float32"),
        ({"arrays": {}}, r"missing:\n  constants/prompt_encoder"),
        ({"files": []}, "files must be a JSON object"),
        ({"files": {"../../etc/passwd": "0"}}, r"\.\./\.\./etc/passwd is missing"),
        ({"version": None}, "version must be a text"),
    ],
)
def test_a_wrong_manifest_is_refused(changes, message, folder):
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        restore(folder)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b'{"config": ', b"[" * 100_000])
def test_a_damaged_manifest_is_refused(content, folder):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
        restore(folder)


def test_an_unfinished_or_missing_folder_is_refused(folder, tmp_path):
    (folder / "config.json").unlink()
    for path in (folder, tmp_path / "nothing"):
        with pytest.raises(CheckpointError, match=r"not a finished one: it has no config\.json"):
            restore(path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}"])
def test_a_forged_folder_is_one_clear_error(content, folder):
    manifest = Manifest.read(folder)
    (folder / "_METADATA").write_bytes(content)
    Manifest.of(folder, manifest.config, manifest.provenance, manifest.arrays).write(folder)
    with pytest.raises(CheckpointError, match="cannot be read"):
        restore(folder)


def test_float64_is_kept_only_where_jax_has_it(variables, folder, tmp_path):
    save(tmp_path / "wide", MODEL, jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables))
    assert set(Manifest.read(tmp_path / "wide").arrays.values()) == {
        dataclasses.replace(array, dtype=np.dtype(np.float64)) for array in Manifest.read(folder).arrays.values()
    }
    assert bits(restore(tmp_path / "wide")[1]) == bits(variables)
