"""`Sam2Model`, `Sam3TrackerModel` and `SamHQModel` of Hugging Face transformers, against ours.

Their grids are square. Where a prompt set has neither a click nor a box, transformers' SAM 2 has two "not a point"
tokens and SAM 2 itself, which ours follows, has none: masks alone and no prompts at all are compared by one test that
says so, and the other kinds in general.
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers
from parity.official import difference, randomise_norms
from random_model import SAM2, random_features
from safetensors.numpy import load_file, save_file

import sam_jax
from sam_jax.batch.decode import Sizes
from sam_jax.batch.predict import predict_masks
from sam_jax.batch.select import select_masks
from sam_jax.config import TINY, SamConfig
from sam_jax.convert import from_torch, identify, identify_encoder, open_checkpoint, to_torch
from sam_jax.decoder.features import maps_of
from sam_jax.decoder.model import Sam
from sam_jax.prompts import Prompts

TOLERANCE = 1e-5
"""As a share of the root mean square of transformers' values, in float32."""

WIDTH, GRID, EARLY = TINY.width, TINY.grid_size[0], 24
LEVELS = [[GRID << i, GRID << i] for i in (2, 1, 0)]
SIZES = Sizes(tokens=(4,), prompt_sets=(10,))
TWIN = "prompt_encoder.shared_embedding.positional_embedding"


def frame(patch: int) -> dict[str, int]:
    return {"image_size": GRID * patch, "patch_size": patch}


def parts(patch: int) -> dict[str, Any]:
    """The settings that all have in common, of a grid of 8 x 8 patches."""
    return {
        "prompt_encoder_config": frame(patch) | {"hidden_size": WIDTH, "mask_input_channels": 16},
        "mask_decoder_config": {
            "hidden_size": WIDTH,
            "mlp_dim": TINY.mlp_width,
            "num_attention_heads": TINY.heads,
            "iou_head_hidden_dim": TINY.iou_head_width,
        },
    }


HIERA = {
    "model_type": "sam2_vision_model",
    "backbone_config": {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 1, 1],
        "blocks_per_stage": [1, 1, 2, 1],
        "window_size_per_stage": [8, 4, 4, 4],
        "global_attention_blocks": [3],
    },
    "backbone_channel_list": [64, 32, 16, 8],
    "backbone_feature_sizes": LEVELS,
    "fpn_hidden_size": WIDTH,
}
MEMORY = {
    "image_size": GRID * 16,
    "memory_attention_hidden_size": WIDTH,
    "memory_attention_num_layers": 1,
    "memory_attention_feed_forward_hidden_size": 8,
    "memory_attention_rope_feat_sizes": [GRID, GRID],
    "memory_encoder_hidden_size": WIDTH,
    "memory_encoder_output_channels": 8,
    "mask_downsampler_embed_dim": WIDTH,
    "memory_fuser_embed_dim": WIDTH,
    "memory_fuser_intermediate_dim": 8,
}


def sam2() -> Any:
    return transformers.Sam2Model(transformers.Sam2Config(vision_config=HIERA, **parts(16)))


def sam2_video() -> Any:
    return transformers.Sam2VideoModel(transformers.Sam2VideoConfig(vision_config=HIERA, **MEMORY, **parts(16)))


def sam3_tracker() -> Any:
    backbone = {
        "model_type": "sam3_vit_model",
        "hidden_size": 16,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": GRID * 14,
        "pretrain_image_size": 56,
        "window_size": 4,
        "global_attn_indexes": [0],
    }
    vision = {"model_type": "sam3_vision_model", "backbone_config": backbone, "fpn_hidden_size": WIDTH}
    config = transformers.Sam3TrackerConfig(vision_config=vision | {"backbone_feature_sizes": LEVELS}, **parts(14))
    return transformers.Sam3TrackerModel(config)


def sam_hq() -> Any:
    vision = {"hidden_size": EARLY, "mlp_dim": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"global_attn_indexes": [0], "output_channels": WIDTH, "num_pos_feats": WIDTH // 2}
    settings = parts(16)
    settings["mask_decoder_config"] |= {"vit_dim": EARLY, "layer_norm_eps": 1e-2}
    return transformers.SamHQModel(transformers.SamHQConfig(vision_config=frame(16) | vision, **settings))


def randomise(model: Any) -> Any:
    """Give a model random weights, none of them zeros or ones, and the Gaussian matrix once."""
    model.eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=parameter.shape[-1] ** -0.5 if parameter.ndim == 2 and len(parameter) > 1 else 0.5)
    randomise_norms(model)
    matrix = model.shared_image_embedding.positional_embedding.normal_()
    model.prompt_encoder.shared_embedding.positional_embedding.copy_(matrix)
    return model


@functools.cache
def models(build: Callable[[], Any]) -> tuple[Any, Sam, Any]:
    """Transformers' model, and ours with its weights and settings."""
    torch.manual_seed(0)
    theirs = randomise(build())
    ours = from_torch(tensors_of(theirs), settings=json.loads(theirs.config.to_json_string()))
    return theirs, Sam(ours.config), ours.variables


def tensors_of(model: Any) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


def decoder_of(model: Any) -> dict[str, np.ndarray]:
    """The tensors that our decoder has, too."""
    names = ("prompt_encoder.", "mask_decoder.", "shared_image_embedding.", "no_memory_embedding")
    return {name: tensor for name, tensor in tensors_of(model).items() if name.startswith(names)}


def channels_first(value: Any) -> torch.Tensor:
    return torch.tensor(np.asarray(value)).permute(2, 0, 1)[None]


SAM2_LIKE = dataclasses.replace(TINY, mask_channels=16, **SAM2)
CONFIGS = {
    sam2: SAM2_LIKE,
    sam2_video: SAM2_LIKE,
    sam3_tracker: dataclasses.replace(SAM2_LIKE, image_size=(112, 112)),
    sam_hq: dataclasses.replace(TINY, mask_channels=16, hq=True, early_width=EARLY, block_norm_eps=1e-2),
}
FAMILIES = {sam2: "sam2", sam2_video: "sam2.1", sam3_tracker: "sam3_tracker", sam_hq: "hf_sam_hq"}


@pytest.mark.parametrize("build", CONFIGS)
def test_settings(build):
    """The decoder of `Sam3TrackerModel` has the names of `Sam2Model`; its `config.json` tells the frame."""
    theirs, model, _ = models(build)
    assert model.config == CONFIGS[build]
    assert identify(tensors_of(theirs)).family.name == FAMILIES[build]


@pytest.mark.parametrize("build", CONFIGS)
def test_there_and_back(build):
    """Every name, shape and bit of the decoder is theirs again, and their class loads it strictly."""
    theirs, model, variables = models(build)
    back = to_torch(model, variables, "hf")
    wanted = decoder_of(theirs)
    if build is sam_hq:  # the second name of a tensor that it ties
        del wanted[TWIN]
    assert back.keys() == wanted.keys()
    for name, tensor in back.items():
        assert (tensor.dtype, tensor.shape) == (wanted[name].dtype, wanted[name].shape), name
        assert tensor.tobytes() == wanted[name].tobytes(), name


@pytest.mark.parametrize("build", [sam2, sam3_tracker, sam_hq])
def test_what_we_write_is_all_that_they_load(build, tmp_path):
    """Their SAM 2 has the Gaussian matrix under two names and does not tie them: a missing one would be random."""
    theirs, model, variables = models(build)
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    encoder = {name: tensors[name] for name in identify(tensors).ignored}
    save_file(encoder | to_torch(model, variables, "hf"), file, metadata={"format": "pt"})
    loaded, info = type(theirs).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_a_video_folder(tmp_path):
    """SAM 2's published folders are of `Sam2VideoModel`. What is for video is known by name, and nothing else is."""
    theirs, *_ = models(sam2_video)
    theirs.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.settings["model_type"] == "sam2_video"
    found = identify(checkpoint.tensors, settings=checkpoint.settings)
    assert not found.gaps
    assert set(found.ignored) == tensors_of(theirs).keys() - decoder_of(theirs).keys()
    for name in ("memory_strange.weight", "no_memory_token"):
        strange = identify(dict(checkpoint.tensors) | {name: np.zeros(3, np.float32)}, settings=checkpoint.settings)
        assert strange.gaps.unexpected == (f"{name} (3,)",)


def maps_of_a_frame(theirs: Any, frame: np.ndarray) -> dict[str, np.ndarray]:
    """All maps that transformers' encoder makes of a frame, by our names."""
    made = theirs.get_image_embeddings(channels_first(frame))
    if isinstance(made, list):
        maps = dict(zip(("stride_4", "stride_8", "embedding"), made, strict=True))
        return {name: value[0].permute(1, 2, 0).numpy() for name, value in maps.items()}
    embedding, (early, *_) = made
    return {"embedding": embedding[0].permute(1, 2, 0).numpy(), "early": early[0].numpy()}


@pytest.mark.parametrize("build", [sam2, sam2_video, sam_hq])
def test_the_encoder_of_a_folder(build, tmp_path, rng):
    """A predictor of a whole folder: its maps of an image are theirs, and are what the decoder takes."""
    theirs, model, _ = models(build)
    theirs.save_pretrained(tmp_path)
    predictor = sam_jax.Predictor.load(tmp_path)
    assert predictor.model == model
    frame = rng(*model.config.image_size, 3)
    ours = maps_of(jax.jit(predictor.encoder.apply)(predictor.encoder_variables, frame))
    official = maps_of_a_frame(theirs, frame)
    assert ours.keys() == official.keys()
    for name, value in ours.items():
        assert difference(value, official[name]) <= TOLERANCE, name


def test_the_encoder_of_sam3_is_refused(tmp_path):
    theirs, model, _ = models(sam3_tracker)
    theirs.save_pretrained(tmp_path)
    assert sam_jax.load(tmp_path)[0] == model
    with pytest.raises(sam_jax.CheckpointError, match=r"image encoder \(SAM 3\) cannot be converted"):
        sam_jax.load_encoder(tmp_path)


@pytest.mark.parametrize(
    ("kind", "family", "frame"),
    [
        ("Sam3Video", "sam3_tracker", {"image_size": (1008, 1008), "grid_size": (72, 72)}),
        ("EdgeTamVideo", "edge_tam", {}),
    ],
)
def test_the_decoder_of_a_video_model(kind, family, frame):
    """`facebook/sam3` is of `Sam3VideoModel`, whose tracker's settings have a section of their own."""
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")())
    tensors = {name: np.broadcast_to(np.float32(0), tuple(tensor.shape)) for name, tensor in model.state_dict().items()}
    settings = json.loads(model.config.to_json_string())
    found = identify(tensors, settings=settings)
    assert not found.gaps
    assert (found.family.name, found.naming, len(found.sources)) == (family, "hf", 147)
    assert found.config == SamConfig(**SAM2, **frame)
    if kind == "Sam3Video":
        with pytest.raises(sam_jax.CheckpointError, match=r"image encoder \(SAM 3\) cannot be converted"):
            identify_encoder(tensors, settings=settings)


@pytest.mark.parametrize(
    ("build", "config"),
    [
        (lambda: transformers.Sam2Model(transformers.Sam2Config()), SamConfig(**SAM2)),
        (lambda: transformers.SamHQModel(transformers.SamHQConfig()), SamConfig(hq=True, early_width=768)),
    ],
    ids=["Sam2Model", "SamHQModel"],
)
def test_the_usual_architecture(build, config):
    """Of names and shapes alone, and of the settings that the class has when none are given."""
    with torch.device("meta"):
        model = build()
    tensors = {name: np.broadcast_to(np.float32(0), tuple(tensor.shape)) for name, tensor in model.state_dict().items()}
    if config.hq:  # of their `SamModel` and `SamHQModel`, the blocks' norms have another epsilon
        config = dataclasses.replace(config, block_norm_eps=1e-6)
    for settings in (None, json.loads(model.config.to_json_string())):
        found = identify(tensors, settings=settings)
        assert not found.gaps
        assert found.config == config


POINTS = {"points": [[[10, 20], [99.5, 3]], [[64, 64], [0, 111]]], "labels": [[1, 0], [0, 1]]}
BOXES = {"boxes": [[10, 20, 90, 100.5], [0, 0, 112, 112]]}
KINDS = [POINTS, BOXES, POINTS | BOXES, POINTS | {"masks": None}, BOXES | {"masks": None}]
ARGUMENTS = {"points": "input_points", "labels": "input_labels", "boxes": "input_boxes", "masks": "input_masks"}


def with_masks(kind: dict[str, Any], mask: np.ndarray) -> dict[str, Any]:
    """Transformers has one mask for all prompt sets of an image."""
    return kind | {"masks": [mask, mask]} if "masks" in kind else kind


def predict(model: Sam, variables: Any, features: Any, kinds: list[dict[str, Any]]) -> Any:
    """Two prompt sets of each kind, all in one call."""
    ragged = {name: [row for kind in kinds for row in kind.get(name, [None, None])] for name in ARGUMENTS}
    return predict_masks(model, variables, features, Prompts.build(**ragged), sizes=SIZES)


def ask(theirs: Any, features: Any, kind: dict[str, Any], **options: Any) -> Any:
    """What transformers returns for one kind."""
    inputs = {ARGUMENTS[name]: torch.tensor(np.array(value, np.float32))[None] for name, value in kind.items()}
    if "input_labels" in inputs:
        inputs["input_labels"] = inputs["input_labels"].int()
    if "input_masks" in inputs:
        inputs["input_masks"] = inputs["input_masks"][:, :1]
    maps = {name: channels_first(value) for name, value in maps_of(features).items()}
    if "early" in maps:
        images = {
            "image_embeddings": maps["embedding"],
            "intermediate_embeddings": [maps["early"].permute(0, 2, 3, 1)],
        }
    else:
        images = {"image_embeddings": [maps["stride_4"], maps["stride_8"], maps["embedding"]]}
    return theirs(**images, **inputs, **options)


def same(ours: Any, theirs: torch.Tensor) -> None:
    assert difference(ours, theirs.numpy()) <= TOLERANCE


@pytest.mark.parametrize("build", [sam2, sam3_tracker])
def test_sam2_predicts_the_same(build, rng):
    """Clicks, boxes, both, and each of them with a mask; the multimask outputs and what is taken for a clear prompt."""
    theirs, model, variables = models(build)
    features, mask = random_features(model=model), 8 * rng(*model.config.mask_size) - 4
    kinds = [with_masks(kind, mask) for kind in KINDS]
    out = predict(model, variables, features, kinds)
    assert {*np.asarray(out.single).tolist()} - {0}, "no prompt set takes another mask than the first"
    for multimask in (True, False):
        logits, iou = select_masks(out, multimask)
        for i, kind in enumerate(kinds):
            sets = slice(2 * i, 2 * i + 2)
            official = ask(theirs, features, kind, multimask_output=multimask)
            same(logits[sets], official.pred_masks[0])
            same(iou[sets], official.iou_scores[0])
            same(out.object_score[sets], official.object_score_logits[0, :, 0])


@pytest.mark.parametrize("kind", [{}, {"masks": None}], ids=["nothing", "a mask alone"])
def test_sam2_without_clicks_and_boxes(kind, rng):
    """Transformers' answer is ours to a click that is "not a point", and not ours to no click."""
    theirs, model, variables = models(sam2)
    features, mask = random_features(model=model), 8 * rng(*model.config.mask_size) - 4
    kind = with_masks(kind, mask)
    official = ask(theirs, features, kind, multimask_output=True).pred_masks[0]
    no_point = {"points": [[[0, 0]]] * 2, "labels": [[-1]] * 2}
    same(predict(model, variables, features, [kind | no_point]).logits[:1, 1:], official)
    assert difference(predict(model, variables, features, [kind]).logits[:1, 1:], official.numpy()) > 0.05


PADDED = -10
"""The label by which transformers' processors fill up ragged clicks."""


@pytest.mark.parametrize("build", [sam2, sam_hq])
def test_what_fills_up_ragged_clicks(build, rng):
    """In transformers it is a token of zeros that the others attend to; here it is nothing."""
    theirs, model, variables = models(build)
    features = random_features(model=model)
    click, other, nowhere = [10.0, 20.0], [90.0, 30.0], [float(PADDED)] * 2
    clicks = [[[click], [other, click]], [[1], [0, 1]]]
    out = predict(model, variables, features, [{"points": clicks[0], "labels": clicks[1]}])
    alone, padded = (
        ask(theirs, features, {"points": points, "labels": labels}, multimask_output=True).iou_scores[0, 0].numpy()
        for points, labels in (([[click]], [[1]]), ([[click, nowhere], [other, click]], [[1, PADDED], [0, 1]]))
    )
    scores = np.asarray(out.iou[0, 1:])
    if build is sam_hq:  # the best first
        alone, padded, scores = -np.sort(-alone), -np.sort(-padded), -np.sort(-scores)
    assert difference(scores, alone) <= TOLERANCE
    assert difference(scores, padded) > 0.001


def write_keys_back(transformer: Any, inputs: Any, named: dict[str, torch.Tensor], output: Any) -> None:
    """Mend `SamHQModel`: it upscales the image that went into the transformer, transposed, and not what came out."""
    image = named["image_embeddings"]
    image.copy_(output[1].squeeze(1).transpose(1, 2).reshape(image.shape).transpose(2, 3))


def hq_differences(rng: Any) -> tuple[float, float]:
    """The largest difference of masks and of scores, over all kinds and selections."""
    theirs, model, variables = models(sam_hq)
    features, mask = random_features(model=model), 8 * rng(*model.config.mask_size) - 4
    kinds = [with_masks(kind, mask) for kind in KINDS]
    out = predict(model, variables, features, kinds)
    plain, scores = np.asarray(out.logits), np.asarray(out.iou)
    of_masks, of_scores = [], []
    for multimask, hq_only in ((True, False), (False, False), (False, True)):
        order = np.argsort(-scores[:, 1:], -1) + 1 if multimask else np.zeros((len(scores), 1), int)
        iou = np.take_along_axis(scores, order, 1)
        logits = np.take_along_axis(plain, order[..., None, None], 1)
        logits = np.asarray(out.hq)[:, None] + (0 if hq_only else logits)
        for i, kind in enumerate(kinds):
            sets = slice(2 * i, 2 * i + 2)
            official = ask(theirs, features, kind, multimask_output=multimask, hq_token_only=hq_only)
            of_masks.append(difference(logits[sets], official.pred_masks[0]))
            of_scores.append(difference(iou[sets], official.iou_scores[0]))
    return max(of_masks), max(of_scores)


def test_sam_hq_predicts_the_same_once_it_is_mended(rng):
    """Of multimask outputs, transformers returns all three, the best first, each with the HQ mask added."""
    theirs, *_ = models(sam_hq)
    hook = theirs.mask_decoder.transformer.register_forward_hook(write_keys_back, with_kwargs=True)
    try:
        of_masks, of_scores = hq_differences(rng)
    finally:
        hook.remove()
    assert of_masks <= TOLERANCE
    assert of_scores <= TOLERANCE


def test_scores_of_sam_hq_are_the_same_without_mending(rng):
    assert hq_differences(rng)[1] <= TOLERANCE


@pytest.mark.xfail(strict=True, reason="SamHQModel upscales its transformer's input, with height and width swapped")
def test_masks_of_sam_hq_are_the_same_without_mending(rng):
    """When this passes, transformers is mended: then `write_keys_back` can go."""
    assert hq_differences(rng)[0] <= TOLERANCE
