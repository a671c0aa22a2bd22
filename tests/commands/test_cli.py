"""The command line: what it writes, what it says, and that errors are one sentence."""

import dataclasses
import hashlib
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import sam_jax
from sam_jax.commands import cli
from sam_jax.config import TINY, SamConfig
from sam_jax.convert import read_tensors
from sam_jax.convert.tables.rules import torch_shapes
from sam_jax.files import conversion
from sam_jax.files.manifest import Manifest

GAUSSIAN = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
IOU_TOKEN = "mask_decoder.iou_token.weight"


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in torch_shapes(TINY).items()}


@pytest.fixture(scope="module")
def source(tensors, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("source") / "tiny.safetensors"
    safetensors.numpy.save_file(tensors | {"image_encoder.x": np.zeros(3, np.float32)}, path)
    return path


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command in this process; return exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sam-jax", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        try:
            cli.main()
            code = 0
        except SystemExit as exit_:
            # as the interpreter does with a text
            code = exit_.code if isinstance(exit_.code, int) else 1
            print(exit_.code, file=sys.stderr)
        return code, *capsys.readouterr()

    return run


def bits(tensors: dict[str, np.ndarray]) -> dict[str, tuple[str, bytes]]:
    return {name: (str(array.dtype), array.tobytes()) for name, array in tensors.items()}


def test_the_version_is_printed(run):
    code, out, _ = run("--version")
    assert (code, out) == (0, f"sam-jax {importlib.metadata.version('sam-jax')}\n")


def test_there_and_back_is_bit_for_bit(run, source, tensors, tmp_path):
    folder, hf, meta = tmp_path / "folder", tmp_path / "hf.safetensors", tmp_path / "meta.safetensors"
    assert run("convert", source, "-o", folder)[0] == 0
    assert run("convert", folder, "-o", hf, "--naming", "hf")[0] == 0
    assert run("convert", hf, "-o", meta)[0] == 0
    assert bits(read_tensors(meta)) == bits(tensors)
    assert read_tensors(hf).keys() == torch_shapes(TINY, "hf").keys()


def test_a_pth_is_written_and_read(run, source, tensors, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is an optional dependency")
    assert run("convert", source, "-o", tmp_path / "x.pth")[0] == 0
    loaded = torch.load(tmp_path / "x.pth", weights_only=True)
    assert bits({name: tensor.numpy() for name, tensor in loaded.items()}) == bits(tensors)
    assert run("convert", tmp_path / "x.pth", "-o", tmp_path / "back.safetensors")[0] == 0
    assert bits(read_tensors(tmp_path / "back.safetensors")) == bits(tensors)


def test_the_result_says_where_it_comes_from(run, source, tmp_path):
    folder, file = tmp_path / "folder", tmp_path / "x.safetensors"
    code, out, _ = run("convert", source, "-o", folder, "--family", "medsam")
    run("convert", folder, "-o", file)
    known = {
        "family": "medsam",
        "source": "tiny.safetensors",
        "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "licence": "Apache-2.0",
    }
    assert code == 0
    assert all(text in out for text in known.values())
    assert "commit" not in out
    assert dataclasses.asdict(Manifest.read(folder).provenance) == known | {"commit": None}
    with safetensors.safe_open(file, "np") as opened:
        metadata = opened.metadata()
    own = json.loads(metadata.pop("sam_jax"))
    assert metadata == known | {"format": "pt"}
    assert (own["family"], own["encoder"]) == ("medsam", None)
    assert SamConfig.from_dict(own["decoder"]) == sam_jax.load(folder)[0].config


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_a_dtype_is_for_the_parameters_alone(run, source, tensors, tmp_path, dtype):
    file = tmp_path / "x.safetensors"
    assert run("convert", source, "-o", file, "--dtype", np.dtype(dtype).name)[0] == 0
    for name, array in read_tensors(file).items():
        wanted = tensors[name] if name == GAUSSIAN else tensors[name].astype(dtype)
        assert array.dtype == wanted.dtype
        assert array.tobytes() == wanted.tobytes()


def test_a_number_that_is_too_large_for_the_dtype_is_refused(run, tensors, tmp_path):
    safetensors.numpy.save_file(tensors | {IOU_TOKEN: tensors[IOU_TOKEN] * 0 - 7e4}, tmp_path / "large.safetensors")
    out = tmp_path / "x.safetensors"
    code, _, error = run("convert", tmp_path / "large.safetensors", "-o", out, "--dtype", "float16")
    assert code == 1
    assert error == "sam-jax: mask_decoder/iou_token has numbers up to 7e+04, which are too large for float16.\n"
    assert not out.exists()
    assert run("convert", tmp_path / "large.safetensors", "-o", out, "--dtype", "bfloat16")[0] == 0


def test_an_encoder_that_is_left_out_is_told(run, source, tmp_path):
    _, out, _ = run("convert", source, "-o", tmp_path / "a")
    assert "The image encoder (1 tensors) is left out. To keep it, add --encoder." in out


def test_weights_are_written_back_into_the_checkpoint_that_they_came_from(run, source, tensors, tmp_path):
    """Names, shapes and what else is there are the base's; the decoder is ours, bit for bit."""
    base, out = tmp_path / "base.safetensors", tmp_path / "out.safetensors"
    others = {"net.image_encoder.x": np.ones(3, np.float32), "net.pixel_mean": np.zeros((3, 1, 1), np.float32)}
    safetensors.numpy.save_file({f"net.{name}": x * 0 for name, x in tensors.items()} | others, base)
    assert run("convert", source, "-o", out, "--base", base)[0] == 0
    assert bits(read_tensors(out)) == bits({f"net.{name}": x for name, x in tensors.items()} | others)
    code, _, error = run("convert", source, "-o", tmp_path / "folder", "--base", base)
    assert (code, "--base is for files that end in" in error) == (1, True)
    safetensors.numpy.save_file(tensors | {IOU_TOKEN: np.zeros((1, 31), np.float32)}, base)
    code, _, error = run("convert", source, "-o", out, "--base", base, "--overwrite")
    assert (code, error.startswith(f"sam-jax: The weights do not fit into {base}.")) == (1, True)


def test_one_of_several_decoders_is_chosen_by_its_prefix(run, tensors, tmp_path):
    both, out = tmp_path / "both.safetensors", tmp_path / "out.safetensors"
    mean = {f"ema.{name}": x + 1 for name, x in tensors.items()}
    safetensors.numpy.save_file({f"net.{name}": x for name, x in tensors.items()} | mean, both)
    for command in (("inspect", both), ("convert", both, "-o", out)):
        code, _, error = run(*command)
        assert (code, "below the prefixes 'ema.', 'net.'. Choose one" in error) == (1, True)
    assert run("inspect", both, "--prefix", "net")[0] == 0
    assert run("convert", both, "-o", out, "--prefix", "ema")[0] == 0
    assert bits(read_tensors(out)) == bits({name: x + 1 for name, x in tensors.items()})
    model, variables = sam_jax.load(both, prefix="net.")
    np.testing.assert_array_equal(sam_jax.convert.to_torch(model, variables)[IOU_TOKEN], tensors[IOU_TOKEN])
    run("convert", out, "-o", tmp_path / "folder")
    with pytest.raises(ValueError, match="A prefix is for PyTorch's files"):
        sam_jax.load(tmp_path / "folder", prefix="net.")


def test_what_files_look_like_this_one_and_which_dtypes_change_is_told(run, tensors, tmp_path):
    patch = np.zeros((768, 3, 16, 16), np.float32)
    mixed = {"mask_decoder.output_hypernetworks_mlps.1.layers.0.bias": np.zeros(32, np.float16)}
    file = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(tensors | mixed | {"image_encoder.patch_embed.proj.weight": patch}, file)
    for command in (("inspect", file), ("convert", file, "-o", tmp_path / "folder")):
        _, out, _ = run(*command)
        assert "Files of medsam and micro_sam look like this one: say so by --family" in out
        assert "1 arrays are made of tensors of several dtypes and get the widest of them, such as" in out
    _, out, _ = run("inspect", file, "--family", "micro_sam")
    assert "micro-sam (micro_sam)" in out
    assert "look like this one" not in out


def test_parameters_can_be_loaded_for_training(run, source, tmp_path):
    run("convert", source, "-o", tmp_path / "half", "--dtype", "float16")
    kept, asked = sam_jax.load(tmp_path / "half")[1], sam_jax.load(tmp_path / "half", dtype="float32")[1]
    for stored, wide in zip(jax.tree.leaves(kept["params"]), jax.tree.leaves(asked["params"]), strict=True):
        assert (stored.dtype, wide.dtype) == (np.float16, np.float32)
        np.testing.assert_array_equal(stored, wide)


def test_load_reads_what_convert_writes(run, source, tmp_path):
    run("convert", source, "-o", tmp_path / "folder")
    (model, variables), (converted, from_folder) = sam_jax.load(source), sam_jax.load(str(tmp_path / "folder"))
    assert model == converted
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, from_folder))


@pytest.mark.parametrize("out", ["folder", "x.safetensors"])
def test_nothing_is_replaced_unless_asked(run, source, out, tmp_path):
    assert run("convert", source, "-o", tmp_path / out)[0] == 0
    code, _, error = run("convert", source, "-o", tmp_path / out, "--dtype", "bfloat16")
    assert code == 1
    assert error == f"sam-jax: {tmp_path / out} exists already. To replace it, add --overwrite.\n"
    assert sam_jax.load(tmp_path / out)[1]["params"]["mask_decoder"]["iou_token"].dtype == np.float32
    assert run("convert", source, "-o", tmp_path / out, "--dtype", "bfloat16", "--overwrite")[0] == 0
    assert sam_jax.load(tmp_path / out)[1]["params"]["mask_decoder"]["iou_token"].dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "sam_vit_x", "-o", "out"], "no published checkpoint of that name (sam_vit_b, sam_vit_l"),
        (["convert", "{source}", "-o", "out", "--family", "sum"], "sum"),
        (["convert", "{source}", "-o", "out", "--naming", "hf"], "--naming is for files that end in .safetensors"),
        (["convert", "{tmp}", "-o", "out"], "The folder has none of the files"),
        (["inspect", "nothing.pth"], "There is no nothing.pth, and no published checkpoint"),
    ],
)
def test_an_error_is_one_line(run, arguments, message, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, error = run(*(argument.format(source=source, tmp=tmp_path) for argument in arguments))
    assert code == 1
    assert out == ""
    assert error.startswith("sam-jax: ")
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_is_no_traceback(run, source, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion, "from_torch", interrupt)
    assert run("convert", source, "-o", tmp_path / "out") == (1, "", "sam-jax: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_a_gap_is_listed_and_nothing_is_written(run, tensors, tmp_path):
    damaged = {name: array for name, array in tensors.items() if name != GAUSSIAN}
    safetensors.numpy.save_file(damaged, tmp_path / "damaged.safetensors")
    for arguments in (
        ["convert", tmp_path / "damaged.safetensors", "-o", tmp_path / "out"],
        ["inspect", tmp_path / "damaged.safetensors"],
    ):
        code, _, error = run(*arguments)
        assert code == 1
        assert f"1 missing:\n  {GAUSSIAN} (2, 16)" in error
    assert not (tmp_path / "out").exists()


def rows(text: str) -> dict[str, str]:
    return {label: value.strip() for label, _, value in (line.partition("  ") for line in text.splitlines())}


def test_inspect_tells_what_a_file_is(run, source, tensors):
    code, out, _ = run("inspect", source)
    numbers = sum(array.size for array in tensors.values())
    found = rows(out)
    assert code == 0
    assert found["container"] == "safetensors"
    assert found["tensors"] == f"138: {numbers + 3:,} float32"
    assert found["decoder"] == f"137: {numbers:,} float32"
    assert found["ignored"] == "1: 3 float32"
    assert found["family"] == "Segment Anything (sam)"
    assert found["grid_size"] == "64 x 64"
    assert set(found) >= {field.name for field in dataclasses.fields(SamConfig)}


def test_inspect_tells_what_a_folder_is(run, source, tmp_path):
    run("convert", source, "-o", tmp_path / "folder")
    code, out, _ = run("inspect", tmp_path / "folder")
    assert code == 0
    assert rows(out)["source"] == "tiny.safetensors"
    assert rows(out)["arrays"].startswith("116: 41,222 float32")
    (tmp_path / "folder" / "_METADATA").write_text("{}")
    assert run("inspect", tmp_path / "folder")[0] == 1


def test_inspect_shows_what_is_known_of_a_file_that_cannot_be_converted(run, tensors, tmp_path):
    other = tensors | {"tracker.model.sam_mask_decoder.iou_token.weight": np.zeros((16, 32), np.float32)}
    safetensors.numpy.save_file(other, tmp_path / "other.safetensors")
    code, out, error = run("inspect", tmp_path / "other.safetensors")
    assert code == 1
    assert rows(out)["tensors"].startswith("138: ")
    assert "the multiplex head of SAM 3.1" in error


def test_inspect_needs_no_jax(source):
    script = """
import sys
from sam_jax.commands import cli
from sam_jax.files import conversion
cli.main()
print("jax" in sys.modules or "torch" in sys.modules)
"""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-P", "-c", script, "inspect", source],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.splitlines()[-1] == "False"


def test_a_hugging_face_folder_is_read_with_its_settings(run, source, tmp_path):
    folder = tmp_path / "hf"
    folder.mkdir()
    run("convert", source, "-o", folder / "model.safetensors", "--naming", "hf")
    settings = {
        "model_type": "sam",
        "prompt_encoder_config": {"image_size": 128, "patch_size": 16, "mask_input_channels": 8},
        "vision_config": {"image_size": 128, "patch_size": 16},
        "mask_decoder_config": {
            "hidden_size": 32,
            "num_attention_heads": 2,
            "mlp_dim": 64,
            "iou_head_hidden_dim": 32,
        },
    }
    (folder / "config.json").write_text(json.dumps(settings))
    model, variables = sam_jax.load(folder)
    assert model.config == dataclasses.replace(TINY, block_norm_eps=1e-6)
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, sam_jax.load(source)[1]))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(variables))
    assert run("convert", folder, "-o", tmp_path / "folder")[0] == 0
    sha256 = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert Manifest.read(tmp_path / "folder").provenance.sha256 == sha256


def test_a_folder_is_not_of_another_family(run, source, tmp_path):
    run("convert", source, "-o", tmp_path / "folder")
    with pytest.raises(sam_jax.CheckpointError, match="is of the family sam, and medsam is asked for"):
        sam_jax.load(tmp_path / "folder", family="medsam")
