"""`SamModel` of Hugging Face transformers, whose decoder has its own names and epsilons, against ours."""

import dataclasses
import functools
import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from parity.official import randomise_norms

from sam_jax.batch.predict import predict_masks
from sam_jax.config import TINY
from sam_jax.convert.state_dict import from_torch
from sam_jax.decoder.model import Sam
from sam_jax.prompts import Prompts

TOLERANCE = 1e-5
"""As a share of transformers' logits' or IoUs' root mean square, in float32."""


def random_model(block_norm_eps: float) -> transformers.SamModel:
    """A small `SamModel` with random weights, norm scales and biases."""
    frame = {"image_size": TINY.image_size[0], "patch_size": TINY.image_size[0] // TINY.grid_size[0]}
    vision = {"hidden_size": 16, "mlp_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"global_attn_indexes": [0], "output_channels": TINY.width, "num_pos_feats": TINY.width // 2}
    config = transformers.SamConfig(
        vision_config=frame | vision,
        prompt_encoder_config=frame | {"hidden_size": TINY.width, "mask_input_channels": 16},
        mask_decoder_config={
            "hidden_size": TINY.width,
            "mlp_dim": TINY.mlp_width,
            "num_attention_heads": TINY.heads,
            "iou_head_hidden_dim": TINY.iou_head_width,
            "layer_norm_eps": block_norm_eps,
        },
    )
    torch.manual_seed(0)
    model = transformers.SamModel(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=parameter.shape[-1] ** -0.5 if parameter.ndim == 2 and len(parameter) > 1 else 0.5)
    randomise_norms(model)
    return model


@functools.cache
def models(block_norm_eps: float) -> Any:
    """Transformers' model, and ours with its weights and settings."""
    theirs = random_model(block_norm_eps)
    tensors = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    ours = from_torch(tensors, settings=json.loads(theirs.config.to_json_string()))
    return theirs, Sam(ours.config), ours.variables


@pytest.mark.parametrize("block_norm_eps", [1e-6, 1e-2])
def test_settings(block_norm_eps):
    _, model, _ = models(block_norm_eps)
    assert model.config == dataclasses.replace(TINY, mask_channels=16, block_norm_eps=block_norm_eps)
    assert model.config.final_norm_eps == 1e-5


POINTS = {"points": [[[10, 20], [99.5, 3]], [[64, 64], [0, 127]]], "labels": [[1, 0], [0, 1]]}
BOXES = {"boxes": [[10, 20, 90, 100.5], [0, 0, 128, 128]]}
KINDS = [POINTS, BOXES, POINTS | BOXES, POINTS | {"masks": None}]
ARGUMENTS = {"points": "input_points", "labels": "input_labels", "boxes": "input_boxes", "masks": "input_masks"}


@pytest.mark.parametrize(
    ("block_norm_eps", "path"), [(1e-6, "auto"), (1e-2, "plain"), (1e-2, "absorbed"), (1e-2, "low_rank")]
)
def test_predicts_the_same(block_norm_eps, path, rng, compare):
    """Two prompt sets of each kind at once, against one kind after the other. The large epsilon has to be seen."""
    theirs, model, variables = models(block_norm_eps)
    embedding, mask = rng(*model.config.grid_size, model.config.width), 8 * rng(*model.config.mask_size) - 4
    # transformers has one mask for all prompt sets of an image; image tokens of low rank are for prompts without masks.
    kinds = [kind | {"masks": [mask, mask]} if "masks" in kind else kind for kind in KINDS]
    kinds = [kind for kind in kinds if path != "low_rank" or "masks" not in kind]
    ragged = {name: [row for kind in kinds for row in kind.get(name, [None, None])] for name in ARGUMENTS}
    if path == "low_rank":
        del ragged["masks"]
    ours = predict_masks(model, variables, jnp.asarray(embedding), Prompts.build(**ragged), path=path)
    for i, kind in enumerate(kinds):
        inputs = {ARGUMENTS[name]: torch.tensor(np.array(value, np.float32))[None] for name, value in kind.items()}
        if "masks" in kind:
            inputs["input_masks"] = inputs["input_masks"][:, :1]
        sets = slice(2 * i, 2 * i + 2)
        for multimask, masks in ((True, slice(1, None)), (False, slice(0, 1))):
            image = torch.tensor(embedding).permute(2, 0, 1)[None]
            official = theirs(image_embeddings=image, multimask_output=multimask, **inputs)
            compare(
                {"transformers logits": ours.logits[sets, masks], "transformers iou": ours.iou[sets, masks]},
                {"transformers logits": official.pred_masks[0], "transformers iou": official.iou_scores[0]},
                TOLERANCE,
            )
