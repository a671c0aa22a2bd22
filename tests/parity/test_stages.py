"""Every part of the decoder against the official one: in float32, and in float64 where the official one can."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from parity.kinds import QUIET
from parity.official import channels_last, difference, record
from stages import decoder_stages, mask_stages

from sam_jax.config import SamConfig
from sam_jax.decoder import mask_decoder
from sam_jax.decoder.positional import fourier_features, grid_features
from sam_jax.decoder.prompt_encoder import PromptEncoder

every_pair = pytest.mark.parametrize("pair", ["wide", "full-size"], indirect=True, scope="session")

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
"""As shares of the official values' root mean square."""

BLOCK_NORMS = ("self_attention", "token_to_image", "mlp", "image_to_token")


def torch_dtype(thing: Any, dtype: str) -> Any:
    return copy.deepcopy(thing).to(getattr(torch, dtype))


def embed(pair: Any, method: Callable[..., Any], *inputs: Any) -> Any:
    encoder = PromptEncoder(pair.config)
    variables = {kind: tree["prompt_encoder"] for kind, tree in pair.variables.items()}
    return jax.jit(lambda *arrays: encoder.apply(variables, *arrays, method=method))(*inputs)


@every_pair
def test_positions_of_coordinates(pair, compare):
    height, width = pair.config.image_size
    x, y = np.meshgrid(np.linspace(0, width, 17), np.linspace(0, height, 13))
    points = np.stack([x.ravel(), y.ravel()], -1).astype(np.float32) + np.float32(0.5)
    layer = pair.official.prompt_encoder.pe_layer
    official = layer.forward_with_coords(torch.tensor(points)[None], pair.config.image_size)[0]
    fractions = jnp.asarray(points / np.array([width, height], np.float32))
    ours = fourier_features(fractions, jnp.asarray(layer.positional_encoding_gaussian_matrix.numpy()))
    compare({"positions of coordinates": ours}, {"positions of coordinates": official}, TOLERANCE["float32"])


@every_pair
def test_positions_of_the_grid(pair, compare):
    official = channels_last(pair.official.prompt_encoder.get_dense_pe()[0])
    matrix = pair.variables["constants"]["prompt_encoder"]["gaussian_matrix"]
    ours = grid_features(pair.config.grid_size, matrix)
    compare({"positions of the grid": ours}, {"positions of the grid": official}, TOLERANCE["float32"])


@every_pair
def test_sparse_embeddings(pair, compare):
    height, width = pair.config.image_size
    points = np.array([[[3, 4], [0, 0], [width, height], [50.25, 7.5]]], np.float32)
    labels, boxes = np.array([[1, 0, 1, -1]], np.float32), np.array([[10, 20, 60, 90]], np.float32)
    clicks, corners = {"points": points, "labels": labels}, boxes.reshape(2, 2)
    prompts = {
        "clicks": (clicks, [*points[0], [0, 0]], [1, 0, 1, -1, -1]),
        "box": ({"boxes": boxes}, corners, [2, 3]),
        "clicks and box": (clicks | {"boxes": boxes}, [*points[0], *corners], [1, 0, 1, -1, 2, 3]),
    }
    ours, official = {}, {}
    for name, (given, coordinates, tokens) in prompts.items():
        official[f"sparse embedding, {name}"] = pair.official.embed(**given)[0][0]
        ours[f"sparse embedding, {name}"] = embed(
            pair, PromptEncoder.sparse, jnp.asarray(coordinates, jnp.float32), jnp.asarray(tokens)
        )
    compare(ours, official, TOLERANCE["float32"])


@every_pair
def test_dense_embedding_of_no_mask(pair, compare):
    official = channels_last(pair.official.embed()[1][0])
    ours = embed(pair, lambda encoder: encoder.dense(pair.config.grid_size, None, None))
    compare({"dense embedding, no mask": ours}, {"dense embedding, no mask": official}, 0)


def both_masks(pair: Any, config: SamConfig, mask: np.ndarray) -> tuple[dict[str, Any], dict[str, Any]]:
    """What every part of the mask prompt's stack returns: ours, the official one's."""
    module = torch_dtype(pair.official.prompt_encoder.mask_downscaling, config.dtype)
    whole = torch.nn.ModuleDict({"mask_downscaling": module})
    official = record(whole, lambda: module(torch.tensor(mask.astype(config.dtype))[None, None]))
    ours = mask_stages(config, pair.variables["params"]["prompt_encoder"]["mask_downscaling"], mask)
    return {path: ours[path] for path in official}, official


def both_decoders(
    pair: Any, config: SamConfig, embedding: np.ndarray, sparse: torch.Tensor, dense: torch.Tensor
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What every part of the mask decoder returns for the same embeddings: ours, the official one's."""
    image = torch.tensor(embedding).permute(2, 0, 1)[None]
    position = pair.official.prompt_encoder.get_dense_pe()
    inputs = [torch_dtype(tensor, config.dtype) for tensor in (image, position, sparse, dense)]
    decoder = torch_dtype(pair.official.mask_decoder, config.dtype)
    results = []
    official = record(decoder, lambda: results.extend(decoder.predict_masks(*inputs)))
    official |= {"logits": results[0][0], "iou": results[1][0]}

    image, position, sparse, dense = (channels_last(tensor[0]) for tensor in inputs)
    ours = decoder_stages(config, pair.variables["params"]["mask_decoder"], image + dense, position, sparse)
    return {path: ours[path] for path in official}, official


@every_pair
def test_mask_downscaling(pair, dtype, rng, compare):
    config = dataclasses.replace(pair.config, dtype=dtype)
    compare(*both_masks(pair, config, 8 * rng(*config.mask_size) - 4), TOLERANCE[dtype])


@every_pair
def test_mask_decoder(pair, dtype, rng, compare):
    config = dataclasses.replace(pair.config, dtype=dtype)
    embedding, mask = rng(*config.grid_size, config.width), 8 * rng(1, *config.mask_size) - 4
    sparse, dense = pair.official.embed(points=[[[3, 4], [50, 60]]], labels=[[1, 0]], masks=mask)
    compare(*both_decoders(pair, config, embedding, sparse, dense), TOLERANCE[dtype])


quiet_pair = pytest.mark.parametrize("pair", ["quiet"], indirect=True, scope="session")


def quiet_inputs(pair: Any, rng: Any) -> tuple[Any, ...]:
    """Inputs of the mask decoder as small as what a quiet pair makes of them."""
    h, w = pair.config.grid_size
    c = pair.config.width
    return QUIET * rng(h, w, c), torch.tensor(QUIET * rng(1, 3, c)), torch.tensor(QUIET * rng(1, c, h, w))


@quiet_pair
def test_low_variance(pair, dtype, rng, compare):
    config = dataclasses.replace(pair.config, dtype=dtype)
    compare(*both_masks(pair, config, QUIET * rng(*config.mask_size)), TOLERANCE[dtype])
    compare(*both_decoders(pair, config, *quiet_inputs(pair, rng)), TOLERANCE[dtype])


@quiet_pair
@pytest.mark.parametrize(
    ("mistake", "stages"),
    [
        ("block_norm_eps", [f"two_way/block_{i}/norm_{name}" for i in (0, 1) for name in BLOCK_NORMS]),
        ("final_norm_eps", ["two_way tokens"]),
        ("CONV_NORM_EPS", ["upscaling/norm"]),
    ],
)
def test_low_variance_tells_epsilons_apart(pair, mistake, stages, rng, monkeypatch):
    """The test above can fail: an epsilon of 1e-6 for 1e-5, or the other way round, moves what the norm returns."""
    config = pair.config
    if mistake == "CONV_NORM_EPS":
        monkeypatch.setattr(mask_decoder, mistake, 1e-5)
    else:
        config = dataclasses.replace(config, **{mistake: 1e-6})
    ours, official = both_decoders(pair, config, *quiet_inputs(pair, rng))
    for stage in stages:
        assert difference(ours[stage], official[stage]) > 1000 * TOLERANCE["float32"], stage
