import dataclasses
import json

import pytest

from sam_jax.config import TINY, SamConfig
from sam_jax.convert.tables.families import FAMILIES, listing
from sam_jax.convert.tables.rules import NAMINGS, torch_shapes
from sam_jax.convert.tables.settings import (
    OWN,
    config_from_hf,
    config_from_shapes,
    family_of,
    own_config,
    own_encoder_config,
    own_metadata,
)
from sam_jax.encoders.config import VIT_TINY
from sam_jax.errors import CheckpointError

SAM = FAMILIES["sam"]
EIGHT_HEADS = dataclasses.replace(TINY, heads=8, image_size=(1024, 1024), grid_size=(64, 64))
VARIANTS = {
    "full": SamConfig(),
    "tiny": EIGHT_HEADS,
    "many masks": dataclasses.replace(EIGHT_HEADS, multimask_outputs=9),
    "one mask beside mask 0": dataclasses.replace(EIGHT_HEADS, multimask_outputs=1),
    "deep": dataclasses.replace(EIGHT_HEADS, depth=5, iou_head_depth=4),
    "other widths": dataclasses.replace(EIGHT_HEADS, mlp_width=48, mask_channels=20, iou_head_width=24),
    "no downsampling": dataclasses.replace(EIGHT_HEADS, attention_downsample=1),
}

VIT = {
    "meta": ("image_encoder.pos_embed", "image_encoder.patch_embed.proj.weight"),
    "hf": ("vision_encoder.pos_embed", "vision_encoder.patch_embed.projection.weight"),
}


def hf_settings(**changes) -> dict:
    """A config.json; `section__key=value` changes one entry, and only what differs from the defaults is written."""
    settings = {"model_type": "sam", "prompt_encoder_config": {}, "mask_decoder_config": {}, "vision_config": {}}
    for name, value in changes.items():
        section, _, key = name.partition("__")
        settings[f"{section}_config"][key] = value
    return settings


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("naming", NAMINGS)
def test_shapes_tell_the_architecture(naming, config):
    assert config_from_shapes(torch_shapes(config, naming), naming, SAM, "") == config


def test_the_family_tells_what_shapes_do_not():
    family = dataclasses.replace(
        SAM, block_norm_eps=0.25, final_norm_eps=0.5, image_size=(7, 8), grid_size=(5, 6), heads=2
    )
    config = config_from_shapes(torch_shapes(TINY), "meta", family, "")
    assert config == dataclasses.replace(
        TINY, block_norm_eps=0.25, final_norm_eps=0.5, image_size=(7, 8), grid_size=(5, 6)
    )


@pytest.mark.parametrize("naming", NAMINGS)
def test_a_vit_encoder_in_the_file_tells_the_grid_and_the_image(naming):
    position, patch = VIT[naming]
    text = listing({position: (1, 24, 32, 768), patch: (768, 3, 16, 8)})
    config = config_from_shapes(torch_shapes(TINY, naming), naming, FAMILIES["samed"], text)
    assert (config.grid_size, config.image_size) == ((24, 32), (384, 256))


@pytest.mark.parametrize(
    "shapes", [{"image_encoder.pos_embed": (1, 16, 16, 8)}, {"image_encoder.pos_embed": (1, 9, 8)}]
)
def test_half_of_a_vit_encoder_tells_nothing(shapes):
    assert config_from_shapes(torch_shapes(TINY), "meta", SAM, listing(shapes)).grid_size == (64, 64)


@pytest.mark.parametrize("part", ["transformer.layers.1.", "transformer.layers.0.", "iou_prediction_head.layers.2."])
def test_a_lost_layer_does_not_make_another_architecture(part):
    shapes = {name: shape for name, shape in torch_shapes(SamConfig()).items() if part not in name}
    assert config_from_shapes(shapes, "meta", SAM, "") == SamConfig()


def test_lost_masks_are_not_another_number_of_masks():
    shapes = {name: shape for name, shape in torch_shapes(SamConfig()).items() if "hypernetworks_mlps.3" not in name}
    assert config_from_shapes(shapes, "meta", SAM, "").num_masks == 4


def test_sizes_that_no_decoder_can_have_are_refused():
    shapes = {name: tuple(length + 1 for length in shape) for name, shape in torch_shapes(SamConfig()).items()}
    with pytest.raises(CheckpointError, match=r"No decoder can have this checkpoint's sizes: SamConfig\.width must be"):
        config_from_shapes(shapes, "meta", SAM, "")


def test_a_hostile_number_of_masks_is_refused_before_a_table_is_made():
    with pytest.raises(CheckpointError, match="asks for 1000000000000 layers or masks; at most 1024 are supported"):
        config_from_shapes({"mask_decoder.mask_tokens.weight": (10**12, 256)}, "meta", SAM, "")


def test_an_empty_hf_config_is_the_published_model():
    assert config_from_hf(hf_settings()) == SamConfig(block_norm_eps=1e-6, final_norm_eps=1e-5)
    assert config_from_hf({"model_type": "sam"}) == SamConfig(block_norm_eps=1e-6, final_norm_eps=1e-5)


def test_every_entry_of_an_hf_config_is_used():
    sizes = {"image_size": 96, "patch_size": 8}
    settings = {
        "model_type": "sam",
        "vision_config": sizes,
        "prompt_encoder_config": sizes | {"mask_input_channels": 20, "hidden_act": "gelu", "layer_norm_eps": 1e-6},
        "mask_decoder_config": {
            "hidden_size": 64,
            "num_attention_heads": 4,
            "mlp_dim": 48,
            "num_hidden_layers": 3,
            "attention_downsample_rate": 4,
            "num_multimask_outputs": 5,
            "iou_head_hidden_dim": 24,
            "iou_head_depth": 4,
            "layer_norm_eps": 1e-3,
            "hidden_act": "relu",
        },
    }
    assert config_from_hf(settings) == SamConfig(
        width=64,
        heads=4,
        mlp_width=48,
        depth=3,
        attention_downsample=4,
        multimask_outputs=5,
        mask_channels=20,
        iou_head_width=24,
        iou_head_depth=4,
        block_norm_eps=1e-3,
        final_norm_eps=1e-5,
        image_size=(96, 96),
        grid_size=(12, 12),
    )


def test_hugging_face_s_sam_hq():
    wanted = SamConfig(block_norm_eps=1e-6, hq=True, early_width=1024)
    assert config_from_hf({"model_type": "sam_hq", "mask_decoder_config": {"vit_dim": 1024}}) == wanted
    assert config_from_hf({"model_type": "sam_hq"}).early_width == 768


SAM2_CONFIG = SamConfig(
    high_resolution=True,
    object_score=True,
    iou_sigmoid=True,
    pad_boxes=True,
    dynamic_multimask=True,
    postprocessing="sam2",
)


SAM3_FRAME = {"image_size": (1008, 1008), "grid_size": (72, 72)}


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        ("sam2", None),
        ("sam2_video", None),
        ("edgetam", "edge_tam"),
        ("edgetam_video", "edge_tam"),
        ("sam3_tracker", "sam3_tracker"),
        ("sam3_tracker_video", "sam3_tracker"),
        ("sam3_video", "sam3_tracker"),
    ],
)
def test_hugging_face_s_sam2_and_its_relatives(kind, family):
    """Where names are those of `Sam2Model`, the kind tells the family, and with it the licence."""
    frame = SAM3_FRAME if family == "sam3_tracker" else {}
    assert config_from_hf({"model_type": kind}) == dataclasses.replace(SAM2_CONFIG, **frame)
    assert family_of({"model_type": kind}) is (FAMILIES[family] if family else None)


def test_the_tracker_of_a_video_model_has_its_own_section():
    """What a `Sam3VideoModel` does to a video's masks, such as filling their holes, is no part of its decoder."""
    tracker = {
        "model_type": "sam3_tracker_video",
        "prompt_encoder_config": {"image_size": 112, "patch_size": 14},
        "mask_decoder_config": {"mlp_dim": 64},
    }
    settings = {"model_type": "sam3_video", "fill_hole_area": 16, "mask_decoder_config": {"mlp_dim": 99}}
    wanted = dataclasses.replace(SAM2_CONFIG, mlp_width=64, image_size=(112, 112), grid_size=(8, 8))
    assert config_from_hf(settings | {"tracker_config": tracker}) == wanted
    with pytest.raises(CheckpointError, match="tracker_config must be an object, got 3"):
        config_from_hf(settings | {"tracker_config": 3})
    with pytest.raises(CheckpointError, match="model_type 'sam3'"):
        config_from_hf(settings | {"tracker_config": tracker | {"model_type": "sam3"}})


@pytest.mark.parametrize("key", ["dynamic_multimask_stability_delta", "dynamic_multimask_stability_thresh"])
def test_another_rule_for_stable_masks_is_refused(key):
    with pytest.raises(CheckpointError, match=f"{key} 0.5 where only"):
        config_from_hf({"model_type": "sam2", "mask_decoder_config": {key: 0.5}})


RELATIVES = {
    "sam_hq": dataclasses.replace(EIGHT_HEADS, hq=True, early_width=40),
    "efficient_sam": dataclasses.replace(
        EIGHT_HEADS, mask_channels=16, efficient_sam=True, postprocessing="efficient_sam"
    ),
    "hq_sam2": dataclasses.replace(SAM2_CONFIG, hq=True),
    "sam2": SAM2_CONFIG,
    "efficient_tam": dataclasses.replace(SAM2_CONFIG, high_resolution=False),
    "sam3.1_tracker": dataclasses.replace(SAM2_CONFIG, iou_sigmoid=False, image_size=(1008, 1008), grid_size=(72, 72)),
}


@pytest.mark.parametrize("name", RELATIVES)
@pytest.mark.parametrize("naming", NAMINGS)
def test_shapes_tell_which_parts_a_decoder_has(naming, name):
    shapes = torch_shapes(RELATIVES[name], naming)
    assert config_from_shapes(shapes, naming, FAMILIES[name], "") == RELATIVES[name]


@pytest.mark.parametrize("settings", [{"model_type": "bert"}, {"model_type": 3}, {}])
def test_other_model_types_are_refused(settings):
    with pytest.raises(CheckpointError, match=r"model_type .* One of sam, sam_hq, .* is wanted\."):
        config_from_hf(settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_decoder__hidden_act": "gelu"}, "hidden_act 'gelu' where only 'relu'"),
        ({"prompt_encoder__hidden_act": "relu"}, "hidden_act 'relu' where only 'gelu'"),
        ({"prompt_encoder__layer_norm_eps": 1e-5}, "layer_norm_eps 1e-05 where only 1e-06"),
        ({"prompt_encoder__num_point_embeddings": 5}, "num_point_embeddings 5 where only 4"),
        ({"prompt_encoder__image_size": 512}, "prompt encoder has a grid of 32, its vision encoder one of 64"),
        ({"prompt_encoder__image_size": "1024"}, "image_size must be a positive integer, got '1024'"),
        ({"prompt_encoder__patch_size": 0}, "patch_size must be a positive integer, got 0"),
        ({"mask_decoder__hidden_size": 250}, "SamConfig.width must be divisible"),
        ({"mask_decoder__num_hidden_layers": 10**9}, "asks for 1000000000 layers or masks"),
        ({"mask_decoder__mlp_dim": None}, "SamConfig.mlp_width must be a positive integer"),
    ],
)
def test_a_config_that_means_something_else_is_refused(change, message):
    with pytest.raises(CheckpointError, match=message):
        config_from_hf(hf_settings(**change))


def test_a_section_that_is_no_object_is_refused():
    with pytest.raises(CheckpointError, match="vision_config must be an object, got 3"):
        config_from_hf({"model_type": "sam", "vision_config": 3})


@pytest.mark.parametrize(("encoder", "family"), [(None, None), (VIT_TINY, "medsam")])
@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_our_own_settings_are_read_as_they_were_written(config, encoder, family):
    config = dataclasses.replace(config, block_norm_eps=0.25, image_size=(7, 8), dtype="bfloat16")
    settings = {name: json.loads(text) for name, text in own_metadata(config, encoder, family).items()}
    assert own_config(settings) == config
    assert own_encoder_config(settings) == encoder
    assert family_of(settings) is (FAMILIES[family] if family else None)


def test_a_family_of_one_s_own_is_not_kept():
    assert json.loads(own_metadata(TINY, family="my own")[OWN])["family"] is None


def test_the_settings_of_others_are_none_of_ours():
    assert family_of({"model_type": "sam"}) is None
    assert own_encoder_config({"model_type": "sam"}) is None
    assert own_encoder_config(None) is None
