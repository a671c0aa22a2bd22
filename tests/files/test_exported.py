import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from random_model import MODEL, SEVERAL_MAPS, family_model, random_embedding, random_features, random_variables

from sam_jax import Prompts, export_decoder, predict_masks
from sam_jax.decoder.features import maps_of
from sam_jax.decoder.model import outputs_of
from sam_jax.files.exported import FEW_TOKENS, GROUPS, trace

VARIABLES = random_variables()

RUN = """
import sys
import numpy as np
from jax import export
folder, inputs, outputs = sys.argv[1:]
prepare, decode = (
    export.deserialize(bytearray(open(f"{folder}/{name}.stablehlo", "rb").read())) for name in ("prepare", "decode")
)
embeddings, *prompts = np.load(inputs).values()
logits, iou = decode.call(*prepare.call(embeddings), *prompts)
np.savez(outputs, logits=logits, iou=iou)
assert not {"flax", "sam_jax"} & set(sys.modules)
"""


def read(folder: Path) -> list[jax.export.Exported]:
    """Return both programs of an artefact."""
    files = [folder / f"{name}.stablehlo" for name in ("prepare", "decode")]
    return [jax.export.deserialize(bytearray(file.read_bytes())) for file in files]


@pytest.mark.parametrize("masks", [False, True])
def test_a_process_with_jax_alone_gives_the_same_masks(tmp_path: Path, masks: bool) -> None:
    export_decoder(tmp_path / "decoder", MODEL, VARIABLES, masks=masks)
    rng = np.random.default_rng(0)
    embeddings = random_embedding(2)
    given = {"points": rng.uniform(0, 128, (2, 3, 2, 2)), "labels": np.ones((2, 3, 2))}
    if masks:
        given["masks"] = rng.normal(size=(2, 3, *MODEL.config.mask_size))
    prompts = Prompts.build(**given)
    arrays = {"embeddings": embeddings, "coordinates": prompts.coordinates, "labels": prompts.labels}
    if masks:
        arrays |= {"masks": prompts.masks, "has_mask": prompts.has_mask}
    np.savez(tmp_path / "in.npz", **arrays)
    arguments = [str(tmp_path / name) for name in ("decoder", "in.npz", "out.npz")]
    subprocess.run([sys.executable, "-W", "error", "-P", "-c", RUN, *arguments], check=True, cwd=tmp_path)
    out, want = np.load(tmp_path / "out.npz"), predict_masks(MODEL, VARIABLES, embeddings, prompts)
    np.testing.assert_allclose(out["logits"], want.logits, atol=2e-6 * float(np.abs(want.logits).max()))
    np.testing.assert_allclose(out["iou"], want.iou, atol=1e-5)

    manifest = json.loads((tmp_path / "decoder/manifest.json").read_text())
    assert list(manifest["prepare"]["arguments"]) == ["embeddings"]
    for decode in ("decode", "decode_tpu"):
        assert list(manifest[decode]["arguments"]) == [*manifest["prepare"]["results"], *list(arrays)[1:]]
    assert manifest["decode"]["arguments"]["coordinates"]["shape"] == ["images", "prompt_sets", "tokens", 2]
    assert (manifest["precision"], manifest["chunk"]) == ("float32", {"cpu": 4, "cuda": 64, "tpu": 64})
    assert manifest["platforms"] == ["cpu", "cuda", "tpu"]
    assert manifest["config"]["width"] == MODEL.config.width


def test_an_unknown_platform_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="platforms must be some of cpu, cuda, tpu, got rocket"):
        export_decoder(tmp_path / "decoder", MODEL, VARIABLES, platforms=["rocket"])
    assert not list(tmp_path.iterdir())


def test_an_existing_artefact_is_kept(tmp_path: Path) -> None:
    (tmp_path / "decoder").mkdir()
    with pytest.raises(FileExistsError):
        export_decoder(tmp_path / "decoder", MODEL, VARIABLES, platforms=["cpu"])


@pytest.mark.parametrize("family", SEVERAL_MAPS)
def test_all_maps_go_in_and_all_outputs_come_out(tmp_path: Path, family: str) -> None:
    model = family_model(family)
    variables, features = random_variables(model), random_features(2, model=model)
    export_decoder(tmp_path / "decoder", model, variables, platforms=["cpu"])
    manifest = json.loads((tmp_path / "decoder/manifest.json").read_text())
    assert list(manifest["prepare"]["arguments"]) == ["embeddings", *list(maps_of(features))[1:]]
    assert list(manifest["decode"]["arguments"])[-2:] == ["coordinates", "labels"]
    prepare, decode = read(tmp_path / "decoder")
    prompts = Prompts.build(boxes=np.tile([5.0, 6, 70, 80], (2, 3, 1)), images=True)
    results = decode.call(*prepare.call(*maps_of(features).values()), prompts.coordinates, prompts.labels)
    want = outputs_of(predict_masks(model, variables, features, prompts))
    assert list(manifest["decode"]["results"]) == list(want)
    for got, array in zip(results, want.values(), strict=True):
        np.testing.assert_allclose(got, array, atol=2e-6 * float(np.abs(want["logits"]).max()))


def test_any_number_of_prompt_sets_and_tokens(tmp_path: Path) -> None:
    """Groups that are full and not, and every form that a number of tokens asks for."""
    export_decoder(tmp_path / "decoder", MODEL, VARIABLES, platforms=["cpu"])
    prepare, decode = read(tmp_path / "decoder")
    embedding, rng = random_embedding(), np.random.default_rng(0)
    state = prepare.call(embedding[None])
    for sets, clicks in ((1, 1), (4, 5), (6, 9)):
        points = rng.uniform(0, 128, (sets, clicks, 2))
        prompts = Prompts.build(points=points, labels=np.ones((sets, clicks)), images=False)
        logits, iou = decode.call(*state, prompts.coordinates[None], prompts.labels[None])
        want = predict_masks(MODEL, VARIABLES, embedding, prompts)
        np.testing.assert_allclose(logits[0], want.logits, atol=5e-6 * float(np.abs(want.logits).max()))
        np.testing.assert_allclose(iou[0], want.iou, atol=1e-5)


def test_each_platform_has_its_own_program() -> None:
    """Loops over images and groups everywhere, over single prompt sets on a CPU alone; kernels on a TPU."""
    programs = trace(MODEL, VARIABLES, ["cpu", "tpu"])
    assert {name: program.platforms for name, program in programs.items()} == {
        "prepare": ("cpu", "tpu"),
        "decode": ("cpu",),
        "decode_tpu": ("tpu",),
    }
    texts = {name: program.mlir_module() for name, program in programs.items()}
    texts["decode_cuda"] = trace(MODEL, VARIABLES, ["cuda"])["decode"].mlir_module()
    loops = {name: text.count("stablehlo.while") for name, text in texts.items()}
    assert loops["decode"] > loops["decode_cuda"] == loops["decode_tpu"] == 3
    kernels = {name: text.count("@tpu_custom_call") for name, text in texts.items()}
    assert kernels.pop("decode_tpu") == 4 * len(FEW_TOKENS) * len(GROUPS)
    assert set(kernels.values()) == {0}


def test_mask_prompts_have_kernels_too() -> None:
    program = trace(MODEL, VARIABLES, ["tpu"], masks=True)["decode_tpu"]
    assert "@tpu_custom_call" in program.mlir_module()
