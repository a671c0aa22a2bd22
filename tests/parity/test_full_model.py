"""A whole official model, saved by PyTorch, against both of its halves loaded from that file."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from parity.encoders import official_vit, randomise
from parity.official import OfficialDecoder, random_decoder
from parity.torch_tiny_vit import TorchTinyViT

import sam_jax
from sam_jax.config import TINY
from sam_jax.encoders.config import VIT_TINY, TinyViTConfig
from sam_jax.images.preprocess import prepare

DECODER = dataclasses.replace(TINY, width=64, heads=8, iou_head_width=64, mask_channels=16)
"""With the heads that every family has. The file tells the rest, where a ViT is in it."""
VIT = dataclasses.replace(VIT_TINY, depth=2, global_blocks=(1,), out_width=64)
TINY_VIT = TinyViTConfig(
    widths=(8, 16, 24, 32),
    depths=(1, 1, 1, 1),
    heads=(2, 3, 4),
    window_sizes=(3, 5, 4),
    stem_stride=1,
    preprocessing="lite_medsam",
    out_width=64,
    image_size=(256, 256),
)
"""The size of its images is LiteMedSAM's, which its stem tells."""
ENCODERS = {
    "vit": (VIT, lambda: official_vit(VIT)),
    "tiny_vit": (TINY_VIT, lambda: TorchTinyViT(TINY_VIT)),
}

SKIPPED = ("num_batches_tracked", "pixel_mean")
"""What has no place in our variables."""


@pytest.fixture(scope="module", params=ENCODERS)
def whole(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Path, OfficialDecoder]:
    """Settings of an encoder, a file, and the official model that it was saved of."""
    config, make = ENCODERS[request.param]
    model = random_decoder(dataclasses.replace(DECODER, image_size=config.image_size, grid_size=config.grid_size))
    model.image_encoder = randomise(make().eval().requires_grad_(False))
    model.register_buffer("pixel_mean", torch.zeros(3, 1, 1))
    path = tmp_path_factory.mktemp(request.param) / "whole.pth"
    torch.save(model.state_dict(), path)
    return config, path, model


def test_the_settings_are_found(whole):
    config, path, _ = whole
    assert sam_jax.load_encoder(path)[0].config == config
    found = sam_jax.load(path)[0].config
    assert (found.image_size, found.grid_size, found.heads) == (
        config.image_size,
        (8, 8) if config is VIT else (64, 64),
        8,
    )


def test_the_embedding_and_the_masks_are_the_same(whole, compare):
    config, path, official = whole
    image = np.random.default_rng(0).integers(0, 256, (90, 128, 3), np.uint8)
    frame, _ = prepare(image, config.image_size)
    click = {"points": [[[40.0, 30.0]]], "labels": [[1]]}
    expected = official.image_encoder(torch.tensor(frame).permute(2, 0, 1)[None])
    expected = (expected if config is VIT else expected[0])[0].permute(1, 2, 0).numpy()
    official_logits, official_iou = official(expected, **click)

    encoder, variables = sam_jax.load_encoder(path)
    embedding = jax.jit(encoder.apply)(variables, jnp.asarray(frame))
    out = sam_jax.predict_masks(*sam_jax.load(path), embedding, sam_jax.Prompts.build(**click))
    compare(
        {"whole model: embedding": embedding, "whole model: logits": out.logits, "whole model: IoU": out.iou},
        {"whole model: embedding": expected, "whole model: logits": official_logits, "whole model: IoU": official_iou},
        2e-5,
    )


def test_pytorch_loads_what_is_written_back(whole, tmp_path):
    _, path, official = whole
    tensors = sam_jax.convert.to_torch(*sam_jax.load(path))
    tensors |= sam_jax.convert.encoder_to_torch(*sam_jax.load_encoder(path))
    sam_jax.convert.write_tensors(tmp_path / "back.pth", tensors)
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    written = {name: tensor for name, tensor in official.state_dict().items() if not name.endswith(SKIPPED)}
    assert back.keys() == written.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in written.items())
    assert not official.load_state_dict(back, strict=False).unexpected_keys
