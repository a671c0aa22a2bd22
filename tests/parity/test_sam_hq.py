"""SAM-HQ from pixels to masks, against the predictor of `segment-anything-hq`."""

import dataclasses
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from parity.encoders import randomise
from parity.official import difference
from parity.relatives import HqDecoder, modeling
from parity.stand_ins import import_package
from parity.test_automatic import assert_same_records
from PIL import Image

from sam_jax.config import TINY
from sam_jax.encoders.config import VIT_TINY, TinyViTConfig
from sam_jax.predictor import Predictor

hq = import_package("segment_anything_hq.predictor")
generator = import_package("segment_anything_hq.automatic_mask_generator")

TOLERANCE = 1e-5
"""As a share of the root mean square of the official values, in float32."""

VIT = dataclasses.replace(VIT_TINY, early_feature=True, out_width=64)
TINY_VIT = TinyViTConfig(
    widths=(8, 16, 24, 320),
    depths=(1, 1, 1, 1),
    heads=(2, 3, 10),
    window_sizes=(3, 5, 4),
    out_width=256,
    early_feature=True,
)
"""The size of its images is the family's, because no shape tells it."""


def official_encoder(config: Any) -> torch.nn.Module:
    """The package's encoder of these settings."""
    if isinstance(config, TinyViTConfig):
        return modeling.TinyViT(
            img_size=config.image_size[0],
            embed_dims=config.widths,
            depths=config.depths,
            num_heads=(1, *config.heads),
            window_sizes=(1, *config.window_sizes),
        )
    return modeling.ImageEncoderViT(
        depth=config.depth,
        embed_dim=config.width,
        img_size=config.image_size[0],
        mlp_ratio=config.mlp_width / config.width,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        num_heads=config.heads,
        use_rel_pos=True,
        global_attn_indexes=config.global_blocks,
        window_size=config.window_size,
        out_chans=config.out_width,
    )


@pytest.fixture(scope="module", params=[VIT, TINY_VIT], ids=["vit", "tiny_vit"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Predictor]:
    """The official predictor, and ours of the file that PyTorch saved of its model."""
    config = request.param
    early = config.widths[2] if isinstance(config, TinyViTConfig) else config.width
    torch.manual_seed(0)
    settings = dataclasses.replace(
        TINY,
        width=config.out_width,
        heads=8,
        iou_head_width=config.out_width,
        mask_channels=16,
        image_size=config.image_size,
        grid_size=config.grid_size,
        hq=True,
        early_width=early,
    )
    decoder = HqDecoder(settings)
    model = modeling.Sam(official_encoder(config), decoder.prompt_encoder, decoder.mask_decoder)
    randomise(model.requires_grad_(False))
    model.eval()  # TinyViT then keeps a table of its biases
    path = tmp_path_factory.mktemp("sam_hq") / "sam_hq.pth"
    torch.save(model.state_dict(), path)
    ours = Predictor.load(path)
    assert ours.model.config == settings
    assert ours.encoder.config == config
    return hq.SamPredictor(model), ours


def test_from_pixels_to_masks(both: tuple[Any, Predictor]) -> None:
    """One mask for a prompt, by the predictor's default; the early feature is the encoder's own."""
    official, ours = both
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    image = np.asarray(Image.fromarray(noise).resize((120, 90)))
    official.set_image(image)
    encoded = ours.set_image(image)
    embedding = official.features[0].permute(1, 2, 0).numpy()
    assert difference(encoded.embedding.embedding, embedding) < TOLERANCE
    assert difference(encoded.embedding.early, official.interm_features[0][0].numpy()) < TOLERANCE
    cases: list[tuple[dict[str, Any], bool]] = [
        ({"points": [[40.0, 60.0]], "labels": [1]}, True),
        ({"boxes": [10.0, 20.0, 100.0, 70.0]}, False),
    ]
    for given, multimask in cases:
        masks, scores, logits = official.predict(
            point_coords=np.array(given["points"]) if "points" in given else None,
            point_labels=np.array(given["labels"]) if "labels" in given else None,
            box=np.array(given["boxes"]) if "boxes" in given else None,
            multimask_output=multimask,
        )
        found = ours.predict(**given, multimask=multimask)
        assert found.masks.shape == masks.shape == (1, 90, 120)
        np.testing.assert_allclose(found.scores, scores, atol=1e-5)
        assert difference(found.logits, logits) < TOLERANCE
        assert np.mean(found.masks != masks) < 1e-4


@pytest.mark.parametrize("both", [VIT], indirect=True, ids=["vit"])
def test_every_object(both: tuple[Any, Predictor]) -> None:
    """The package's generator has one mask for a point."""
    official, ours = both
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    image = np.asarray(Image.fromarray(noise).resize((120, 90)))
    settings = {"points_per_side": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}
    theirs = generator.SamAutomaticMaskGenerator(official.model, **settings).generate(image)
    assert_same_records(ours.generate(image, **settings), theirs, image, 16)
