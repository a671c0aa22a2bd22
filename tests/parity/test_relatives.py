"""The decoders of SAM-HQ and SAM 2 against their own packages, for every kind of prompt."""

import copy
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from parity.kinds import KINDS, prompts_in_pixels
from parity.official import channels_last, difference, embed
from parity.relatives import HqDecoder, Sam2Decoder, channels_first, random_relative, tensors_of
from random_model import SAM2, random_features
from stable_masks import ALL, IOU, TAKEN

from sam_jax.batch.decode import Sizes
from sam_jax.batch.predict import predict_masks
from sam_jax.batch.select import select_masks
from sam_jax.config import TINY
from sam_jax.convert.state_dict import from_torch, to_torch
from sam_jax.decoder.features import maps_of
from sam_jax.decoder.mask_decoder import MaskDecoder
from sam_jax.decoder.model import Sam, single_mask
from sam_jax.prompts import Prompts

TOLERANCE = 1e-5
"""As a share of the root mean square of the package's values, in float32."""

SMALL = dataclasses.replace(TINY, mask_channels=16, image_size=(96, 160), grid_size=(6, 10))
CONFIGS = {
    "sam_hq": dataclasses.replace(SMALL, hq=True, early_width=24),
    "sam2": dataclasses.replace(SMALL, **SAM2),
    "efficient_tam": dataclasses.replace(SMALL, **SAM2 | {"high_resolution": False}),
}
SIZES = Sizes(tokens=(8,), prompt_sets=(4,), images=(2,))
PATHS = ("plain", "absorbed", "low_rank")


@pytest.fixture(scope="session")
def relative(request: pytest.FixtureRequest) -> tuple[Any, Sam, Any]:
    """The decoder of a name in `CONFIGS` by its package, ours, and our variables of the same weights."""
    config = CONFIGS[request.param]
    theirs = random_relative(HqDecoder if config.hq else Sam2Decoder, config)
    converted = from_torch(tensors_of(theirs))
    assert converted.family.name == request.param
    model = Sam(dataclasses.replace(converted.config, heads=2, image_size=(96, 160), grid_size=(6, 10)))
    assert model.config == config
    return theirs, model, jax.tree.map(jnp.asarray, converted.variables)


def of(*names: str) -> Any:
    return pytest.mark.parametrize("relative", names, indirect=True, scope="session")


def can(path: str, kind: str) -> bool:
    return path != "low_rank" or "masks" not in KINDS[kind]


def same(ours: Any, theirs: Any) -> None:
    assert difference(ours, theirs) <= TOLERANCE


CASES = [("sam2", path, kind) for path in PATHS for kind in KINDS if can(path, kind)]
CASES += [("efficient_tam", "absorbed", kind) for kind in ("one click", "boxes and clicks", "mask")]


@pytest.mark.parametrize(("relative", "path", "kind"), CASES, indirect=["relative"], scope="session")
def test_sam2(relative, path, kind, rng):
    """All masks, scores and object scores; a box has SAM 2's third token."""
    theirs, model, variables = relative
    features, given = random_features(model=model), prompts_in_pixels(kind, model.config, rng)
    ours = predict_masks(model, variables, features, Prompts.build(**given), sizes=SIZES, path=path)
    logits, iou, object_score = theirs(features, None, **given)
    same(ours.logits, logits)
    same(ours.iou, iou)
    same(ours.object_score, object_score)


@pytest.mark.parametrize("family", ["medsam2", "efficient_tam_512"])
def test_images_of_512_pixels(family, rng):
    """Of such a file, only the family tells the frame: clicks lie in 512 pixels, and mask prompts have 128."""
    finer = {"high_resolution": family == "medsam2"}
    config = dataclasses.replace(SMALL, **SAM2 | finer, heads=8, image_size=(512, 512), grid_size=(32, 32))
    theirs = random_relative(Sam2Decoder, config)
    converted = from_torch(tensors_of(theirs), family=family)
    assert converted.config == config
    model = Sam(converted.config)
    features = random_features(model=model)
    for kind in ("masks and clicks", "mask and box"):
        given = prompts_in_pixels(kind, config, rng)
        ours = predict_masks(model, converted.variables, features, Prompts.build(**given), sizes=SIZES)
        logits, iou, object_score = theirs(features, None, **given)
        assert logits.shape[-2:] == (128, 128)
        same(ours.logits, logits)
        same(ours.iou, iou)
        same(ours.object_score, object_score)


def all_masks_in_float64(theirs: Any, features: Any, sparse: torch.Tensor, dense: torch.Tensor) -> list[np.ndarray]:
    """Logits, scores, and the object score or the HQ mask, of prompts that are embedded in float32."""
    maps = {name: channels_first(value).double() for name, value in maps_of(features).items()}
    inputs = {"image_embeddings": maps["embedding"], "sparse_prompt_embeddings": sparse.double()}
    inputs["dense_prompt_embeddings"] = dense.double()
    if isinstance(theirs, HqDecoder):
        decoder = copy.deepcopy(theirs.mask_decoder).double()
        early = decoder.embedding_encoder(maps["embedding"]) + decoder.compress_vit_feat(maps["early"])
        position = theirs.prompt_encoder.get_dense_pe().double()
        masks, iou = decoder.predict_masks(image_pe=position, hq_features=early, **inputs)
        return [masks[:, :-1].numpy(), iou.numpy(), masks[:, -1].numpy()]
    finer = [maps["stride_4"], maps["stride_8"]] if theirs.config.high_resolution else None
    position = theirs.sam_prompt_encoder.get_dense_pe().double()
    decoder = copy.deepcopy(theirs.sam_mask_decoder).double()
    masks, iou, _, score = decoder.predict_masks(
        image_pe=position, repeat_image=True, high_res_features=finer, **inputs
    )
    return [masks.numpy(), iou.numpy(), score[:, 0].numpy()]


LINEAR_IOU = {"sam3.1_tracker": dataclasses.replace(CONFIGS["sam2"], iou_sigmoid=False)}


@pytest.mark.parametrize("config", (CONFIGS | LINEAR_IOU).values(), ids=CONFIGS | LINEAR_IOU)
def test_the_mask_decoder_in_float64(config, rng):
    """With PyTorch's embeddings of prompts and positions: ours are float32 always."""
    theirs = random_relative(HqDecoder if config.hq else Sam2Decoder, config)
    encoder = theirs.prompt_encoder if config.hq else theirs.sam_prompt_encoder
    features = random_features(model=Sam(config))
    sparse, dense = embed(encoder, **prompts_in_pixels("masks and clicks", config, rng))
    want = all_masks_in_float64(theirs, features, sparse, dense)
    params = from_torch(tensors_of(theirs)).variables["params"]["mask_decoder"]
    position = channels_last(encoder.get_dense_pe()[0])
    with jax.enable_x64(True):
        decoder = MaskDecoder(dataclasses.replace(config, dtype="float64"))
        doubled = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), ({"params": params}, features, position))
        run, (variables, maps, place) = jax.jit(decoder.apply), doubled
        for i, (tokens, whole) in enumerate(zip(sparse.double().numpy(), dense.double(), strict=True)):
            out = run(variables, maps, channels_last(whole), place, tokens, np.ones(len(tokens), bool))
            ours = [out.logits, out.iou, out.hq if config.hq else out.object_score]
            for value, official in zip(ours, want, strict=True):
                assert difference(value, official[i]) <= 1e-9


@of("sam2")
@pytest.mark.parametrize("multimask", [True, False])
def test_what_sam2_selects(relative, multimask, rng):
    """Where mask 0 is not stable, another one is taken, for each prompt set on its own."""
    theirs, model, variables = relative
    features, given = random_features(model=model), prompts_in_pixels("many mixed clicks", model.config, rng)
    out = predict_masks(model, variables, features, Prompts.build(**given))
    logits, iou = select_masks(out, multimask)
    want_logits, want_iou, _ = theirs(features, multimask, **given)
    same(logits, want_logits)
    same(iou, want_iou)


@of("sam2")
def test_what_sam2_takes_for_stable(relative):
    """Around and at the threshold, several prompt sets at once."""
    decoder = relative[0].sam_mask_decoder
    logits, iou = torch.tensor(ALL), torch.tensor(np.tile(IOU, (len(ALL), 1)))
    taken, taken_iou = decoder._dynamic_multimask_via_stability(logits, iou)
    np.testing.assert_array_equal(taken[:, 0], ALL[np.arange(len(ALL)), TAKEN])
    np.testing.assert_array_equal(taken_iou[:, 0], IOU[TAKEN])
    np.testing.assert_array_equal(single_mask(jnp.asarray(ALL), jnp.asarray(iou.numpy())), TAKEN)


@of("sam_hq")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("multimask", "hq"), [(True, "add"), (True, "only"), (False, "add"), (False, "only")])
def test_sam_hq(relative, path, multimask, hq, rng):
    """The four official selections, for all kinds of prompts."""
    theirs, model, variables = relative
    features = random_features(model=model)
    for kind in KINDS:
        if not can(path, kind):
            continue
        given = prompts_in_pixels(kind, model.config, rng)
        out = predict_masks(model, variables, features, Prompts.build(**given), sizes=SIZES, path=path)
        logits, iou = select_masks(out, multimask, hq=hq)
        want_logits, want_iou = theirs(features, multimask, hq == "only", **given)
        same(logits, want_logits)
        same(iou, want_iou)


@of("sam_hq", "sam2", "efficient_tam")
def test_there_and_back(relative):
    """Back in PyTorch, names, shapes and bits are those of the package."""
    theirs, model, variables = relative
    tensors = tensors_of(theirs)
    back = to_torch(model, variables)
    assert {name: tensor.shape for name, tensor in back.items()} == {n: t.shape for n, t in tensors.items()}
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)


@of("sam2")
def test_image_maps(relative, rng):
    """What an encoder elsewhere gives to SAM 2's decoder: finer maps projected, the embedding of no memory added."""
    theirs, model, variables = relative
    (h, w), c = model.config.grid_size, model.config.width
    levels = [rng(h << i, w << i, c) for i in range(3)]
    ours = model.apply(variables, *levels, method=lambda sam, *maps: sam.image_maps(*maps))
    decoder = theirs.sam_mask_decoder
    for level, projection, of_ours in ((1, decoder.conv_s1, ours.stride_8), (2, decoder.conv_s0, ours.stride_4)):
        want = projection(channels_first(levels[level]))[0].permute(1, 2, 0)
        same(of_ours, want.numpy())
    same(ours.embedding, levels[0] + theirs.no_mem_embed.numpy()[0])
