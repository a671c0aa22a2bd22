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

VARIABLES = random_variables()

RUN = """
import sys
import numpy as np
from jax import export
folder, inputs, outputs = sys.argv[1:]
program = export.deserialize(bytearray(open(folder + "/decoder.stablehlo", "rb").read()))
arrays = np.load(inputs)
logits, iou = program.call(*[arrays[name] for name in arrays.files])
np.savez(outputs, logits=logits, iou=iou)
assert not {"flax", "sam_jax"} & set(sys.modules)
"""


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
    assert list(manifest["arguments"]) == list(arrays)
    assert manifest["arguments"]["coordinates"]["shape"] == ["images", "prompt_sets", "tokens", 2]
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
    assert list(manifest["arguments"]) == ["embeddings", *list(maps_of(features))[1:], "coordinates", "labels"]
    program = jax.export.deserialize(bytearray((tmp_path / "decoder/decoder.stablehlo").read_bytes()))
    prompts = Prompts.build(boxes=np.tile([5.0, 6, 70, 80], (2, 3, 1)), images=True)
    results = program.call(*maps_of(features).values(), prompts.coordinates, prompts.labels)
    want = outputs_of(predict_masks(model, variables, features, prompts))
    assert list(manifest["results"]) == list(want)
    for got, array in zip(results, want.values(), strict=True):
        np.testing.assert_allclose(got, array, atol=2e-6 * float(np.abs(want["logits"]).max()))
