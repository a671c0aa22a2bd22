import pytest

from sam_jax.config import SamConfig
from sam_jax.convert.tables.families import (
    FAMILIES,
    find_family,
    listing,
    recognise,
    refuse_relatives,
    refuse_strangers,
)
from sam_jax.convert.tables.rules import torch_shapes
from sam_jax.errors import CheckpointError

PLAIN = torch_shapes(SamConfig())

# One telling tensor of each family's files, as its repository names and shapes it.
EVIDENCE = {
    "sam": {},
    "sam_vit_b": {"image_encoder.patch_embed.proj.weight": (768, 3, 16, 16)},
    "sam_vit_l": {"image_encoder.patch_embed.proj.weight": (1024, 3, 16, 16)},
    "sam_vit_h": {"image_encoder.patch_embed.proj.weight": (1280, 3, 16, 16)},
    "lite_medsam": {"image_encoder.patch_embed.seq.0.c.weight": (32, 3, 1, 1)},
    "mobile_sam": {"image_encoder.patch_embed.seq.0.c.weight": (32, 3, 3, 3)},
    "mobile_sam_v2": {"PromtEncoder.not_a_point_embed.weight": (1, 256)},
    "repvit_sam": {
        "image_encoder.features.0.0.c.weight": (40, 3, 3, 3),
        "image_encoder.features.1.token_mixer.0.conv1.weight": (80, 1, 1, 1),
    },
    "edge_sam": {
        "image_encoder.features.0.0.c.weight": (24, 3, 3, 3),
        "image_encoder.fuse_stage2.weight": (256, 192, 1, 1),
    },
    "slim_sam": {"image_encoder.patch_embed.proj.weight": (168, 3, 16, 16)},
    "micro_sam": {"model_state.sam.image_encoder.patch_embed.proj.weight": (768, 3, 16, 16)},
    "efficient_sam": {
        "image_encoder.blocks.0.mlp.fc1.weight": (1536, 384),
        "image_encoder.patch_embed.proj.weight": (384, 3, 16, 16),
    },
    "efficientvit_sam": {"image_encoder.backbone.input_stem.op_list.0.conv.weight": (32, 3, 3, 3)},
    "sam_med2d": {
        "image_encoder.blocks.0.Adapter.channel.0.weight": (192, 768),
        "image_encoder.patch_embed.proj.weight": (768, 3, 16, 16),
    },
    "samed": {"w_a_000": (4, 768)},
}

SCORE = {"mask_decoder.obj_score_token.weight": (1, 256)}
HIGH_RES = {"mask_decoder.conv_s0.weight": (32, 256, 1, 1)}
LAYER = "mask_decoder.transformer.layers.0"
SAM2 = SCORE | HIGH_RES | {f"{LAYER}.mlp.layers.0.weight": (2048, 256)}
# Families whose decoder differs from SAM's, as their files and Hugging Face's name it.
RELATIVES = [
    ("hq_sam2", SCORE | {"mask_decoder.hf_token.weight": (1, 256)}),
    ("sam_hq", {"mask_decoder.hf_token.weight": (1, 256)}),
    ("hf_sam_hq", {"mask_decoder.hq_token.weight": (1, 256)}),
    ("sam_hq", {"hf_token.weight": (1, 256), "image_encoder.patch_embed.proj.weight": (768, 3, 16, 16)}),
    (
        "sam3.1_tracker",
        {
            "tracker.model.interactive_sam_mask_decoder.obj_score_token.weight": (1, 256),
            "tracker.model.sam_mask_decoder.iou_token.weight": (16, 256),
        },
    ),
    ("sam3_tracker", SCORE | HIGH_RES | {f"{LAYER}.mlp.lin1.weight": (2048, 256)}),
    ("sam3_tracker", {f"tracker_model.{name}": shape for name, shape in SAM2.items()}),
    ("sam3_tracker", SAM2 | {"vision_encoder.backbone.layers.0.layer_norm1.weight": (1024,)}),
    ("edge_tam", SAM2 | {"spatial_perceiver.latents": (256, 64)}),
    ("edge_tam", SAM2 | {"image_encoder.trunk.body.stem.0.c.weight": (24, 3, 3, 3)}),
    ("sam2.1", SAM2 | {"no_obj_embed_spatial": (1, 64)}),
    ("sam2.1", SAM2 | {"occlusion_spatial_embedding_parameter": (1, 64)}),
    ("sam2", SAM2),
    ("sam2", SCORE | HIGH_RES | {f"{LAYER}.mlp.proj_in.weight": (2048, 256)}),
    ("efficient_tam", SCORE | {f"{LAYER}.mlp.layers.0.weight": (2048, 256)}),
    ("efficient_sam", {"model.mask_decoder.final_output_upscaling_layers.0.0.weight": (256, 64, 2, 2)}),
]

REFUSED = [
    ("the multiplex head of SAM 3.1", {"tracker.model.sam_mask_decoder.iou_token.weight": (16, 256)}),
    (
        "a decoder for volumes, such as SAM-Med3D",
        {"prompt_encoder.mask_downscaling.0.weight": (4, 1, 2, 2, 2)},
    ),
    ("a decoder with low-rank adapters (LoRA)", {f"{LAYER}.self_attn.q_proj.lora_A": (4, 256)}),
    ("a decoder with low-rank adapters (LoRA)", {f"{LAYER}.self_attn.q_proj.w_a.weight": (4, 256)}),
    ("a decoder with low-rank adapters (LoRA)", {"transformer.layers.0.self_attn.q_proj.lora_A": (4, 256)}),
]

STRANGERS = [
    ("a UNETR decoder", {"base.0.weight": (64, 256), "out_conv.weight": (3, 64, 1, 1), "deconv1.block.weight": (1,)}),
    ("a UNETR decoder", {"decoder_state.out_conv.weight": (3, 64, 1, 1), "decoder_state.decoder_head.weight": (1,)}),
    ("SAM 3's detector", {"detector_model.mask_decoder.pixel_decoder.weight": (256, 256)}),
    ("SAM 3's detector", {"detector.transformer.weight": (256, 256)}),
    ("an image encoder alone", {"image_encoder.pos_embed": (1, 64, 64, 768)}),
    ("an image encoder alone", {"patch_embed.proj.weight": (768, 3, 16, 16)}),
    (
        "not a SAM decoder: of its 2 tensors, the first are 0.conv.weight (16, 3), 1.conv.weight (32, 16)",
        {"0.conv.weight": (16, 3), "1.conv.weight": (32, 16)},
    ),
    ("not a SAM decoder: it holds no tensors", {}),
]


@pytest.mark.parametrize("name", EVIDENCE)
def test_a_family_is_recognised_by_what_is_around_its_decoder(name):
    assert recognise(listing(EVIDENCE[name] | PLAIN), "meta") is FAMILIES[name]


def test_other_families_have_no_sign_of_their_own():
    silent = {"medsam", "tiny_sam", "hf_sam", "medsam2", "efficient_tam_512"}
    assert set(FAMILIES) - set(EVIDENCE) - {name for name, _ in RELATIVES} == silent


@pytest.mark.parametrize(("name", "tensors"), RELATIVES)
@pytest.mark.parametrize("naming", ["meta", "hf"])
def test_a_relative_is_recognised_by_its_decoder(name, tensors, naming):
    refuse_relatives(listing(tensors))
    assert recognise(listing(tensors), naming) is FAMILIES[name]


def test_hugging_face_names_are_a_family_because_their_epsilon_differs():
    family = recognise(listing(EVIDENCE["sam_vit_b"]), "hf")
    assert (family.name, family.block_norm_eps, family.final_norm_eps) == ("hf_sam", 1e-6, 1e-5)


def test_the_settings_that_differ_from_segment_anything():
    usual = FAMILIES["sam"]
    fields = ("block_norm_eps", "final_norm_eps", "image_size", "grid_size", "heads", "preprocessing", "linear_iou")
    differing = {
        family.name: {
            field: getattr(family, field) for field in fields if getattr(family, field) != getattr(usual, field)
        }
        for family in FAMILIES.values()
    }
    assert {name: settings for name, settings in differing.items() if settings} == {
        "medsam": {"preprocessing": "medsam"},
        "lite_medsam": {"image_size": (256, 256), "preprocessing": "lite_medsam"},
        "micro_sam": {"preprocessing": "micro_sam"},
        "efficientvit_sam": {"block_norm_eps": 1e-6, "final_norm_eps": 1e-6},
        "sam_med2d": {"image_size": (256, 256), "grid_size": (16, 16)},
        "samed": {"image_size": (512, 512), "grid_size": (32, 32)},
        "efficient_sam": {"preprocessing": "efficient_sam"},
        "sam2": {"preprocessing": "sam2"},
        "sam2.1": {"preprocessing": "sam2"},
        "hq_sam2": {"preprocessing": "sam2"},
        "medsam2": {"image_size": (512, 512), "grid_size": (32, 32), "preprocessing": "medsam2"},
        "edge_tam": {"preprocessing": "sam2"},
        "efficient_tam": {"preprocessing": "sam2"},
        "efficient_tam_512": {"image_size": (512, 512), "grid_size": (32, 32), "preprocessing": "sam2"},
        "sam3_tracker": {"image_size": (1008, 1008), "grid_size": (72, 72)},
        "sam3.1_tracker": {"image_size": (1008, 1008), "grid_size": (72, 72), "linear_iou": True},
        "hf_sam_hq": {"block_norm_eps": 1e-6},
        "hf_sam": {"block_norm_eps": 1e-6},
    }
    assert (usual.block_norm_eps, usual.final_norm_eps, usual.heads) == (1e-5, 1e-5, 8)
    assert (usual.image_size, usual.grid_size, usual.preprocessing) == ((1024, 1024), (64, 64), "sam")


def test_edge_sam_is_marked_as_not_for_commercial_use():
    assert [family.name for family in FAMILIES.values() if "non-commercial" in family.licence] == ["edge_sam"]


def test_an_unknown_family_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"^There is no family 'sam9'. Families: sam, sam_vit_b, .*, hf_sam\.$"):
        find_family("sam9")


@pytest.mark.parametrize(("title", "tensors"), REFUSED)
def test_others_are_refused_by_name(title, tensors):
    with pytest.raises(CheckpointError) as caught:
        refuse_relatives(listing(tensors))
    assert str(caught.value).startswith(f"This checkpoint is {title}")


@pytest.mark.parametrize("name", EVIDENCE)
def test_supported_families_are_not_refused(name):
    refuse_relatives(listing(EVIDENCE[name] | PLAIN))


@pytest.mark.parametrize(("title", "tensors"), STRANGERS)
def test_strangers_are_told_what_they_are(title, tensors):
    with pytest.raises(CheckpointError) as caught:
        refuse_strangers(listing(tensors))
    assert str(caught.value).startswith(f"This checkpoint is {title}")
