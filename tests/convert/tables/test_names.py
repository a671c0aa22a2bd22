import re

import pytest

from sam_jax.config import SamConfig
from sam_jax.convert.tables.names import WRAPPERS, plain, sort_out
from sam_jax.convert.tables.rules import torch_shapes
from sam_jax.errors import CheckpointError

META = tuple(torch_shapes(SamConfig()))
HF = tuple(torch_shapes(SamConfig(), "hf"))


def wrapped(prefix: str, names=META) -> dict[str, str]:
    """Plain name -> the same below a prefix."""
    return {name: prefix + name for name in names}


@pytest.mark.parametrize("wrapper", ["", *(f"{wrapper}." for wrapper in WRAPPERS)])
@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "sam.", "model.", "module._orig_mod.model.sam.module."]
)
@pytest.mark.parametrize("names", [META, HF], ids=["meta", "hf"])
def test_wrappers_and_module_prefixes_come_off(names, prefix, wrapper):
    expected = wrapped(wrapper + prefix, names)
    sorted_out = sort_out(expected.values())
    assert sorted_out.tensors == expected
    assert sorted_out.ignored == ()


@pytest.mark.parametrize(
    "prefix",
    [
        "sam_",
        "tracker.sam_",
        "tracker.model.interactive_sam_",
        "inst_interactive_predictor.model.sam_",
    ],
)
def test_larger_models_by_meta_keep_the_decoder_under_a_name_of_their_own(prefix):
    expected = wrapped(prefix)
    assert sort_out(expected.values()).tensors == expected


def test_larger_models_by_hugging_face_do_too():
    expected = wrapped("tracker_model.", HF)
    assert sort_out(expected.values()).tensors == expected


@pytest.mark.parametrize(
    "name",
    [
        "detector_model.mask_decoder.iou_token.weight",
        "tracker.model.sam_mask_decoder.iou_token.weight",
        "ema.mask_decoder.iou_token.weight",
        "decoder.iou_token.weight",
        "my_sam_mask_decoder.iou_token.weight",
    ],
)
def test_only_whole_known_prefixes_come_off(name):
    assert plain(name) == name


def test_mobile_sam_v2_keeps_its_parts_in_two_dictionaries():
    names = {
        name: name.replace("prompt_encoder", "PromtEncoder").replace("mask_decoder", "MaskDecoder") for name in META
    }
    assert sort_out(names.values()).tensors == names


@pytest.mark.parametrize("wrapper", ["", "model."])
def test_a_mask_decoder_saved_alone_is_known_by_its_tokens(wrapper):
    names = {name: wrapper + name.removeprefix("mask_decoder.") for name in META if name.startswith("mask_decoder.")}
    assert sort_out(names.values()).tensors == names


def test_low_rank_adapters_of_a_decoder_saved_alone_are_not_ignored():
    adapter = "transformer.layers.0.self_attn.q_proj.lora_A"
    assert f"mask_decoder.{adapter}" in sort_out(["iou_token.weight", adapter]).tensors


def test_the_first_documented_wrapper_with_a_decoder_wins_and_its_siblings_are_ignored():
    siblings = [
        "state_dict.mask_decoder.iou_token.weight",
        "ema.mask_decoder.iou_token.weight",
        "optimizer.state.0.exp_avg",
        "epoch",
    ]
    sorted_out = sort_out([*siblings, "model.mask_decoder.iou_token.weight"])
    assert sorted_out.tensors == {"mask_decoder.iou_token.weight": "model.mask_decoder.iou_token.weight"}
    assert sorted_out.ignored == tuple(siblings)


def test_a_wrapper_without_a_decoder_is_not_the_one():
    sorted_out = sort_out(["model.0.conv.weight", "state_dict.mask_decoder.iou_token.weight"])
    assert list(sorted_out.tensors) == ["mask_decoder.iou_token.weight"]
    assert sorted_out.ignored == ("model.0.conv.weight",)


@pytest.mark.parametrize(
    "name",
    [
        "image_encoder.blocks.0.attn.qkv.weight",
        "vision_encoder.pos_embed",
        "pixel_mean",
        "pixel_std",
        "memory_attention.layers.0.norm1.weight",
        "memory_encoder.out_proj.weight",
        "maskmem_tpos_enc",
        "mask_downsample.weight",
        "obj_ptr_proj.layers.0.weight",
        "no_obj_ptr",
        "fpn.0.weight",
        "rpn_head.conv.weight",
        "w_a_000",
        "w_b_023",
        "image_encoder.blocks.0.attn.qkv.lora_A",
        "text.layers.0.lora_B",
    ],
)
@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_what_relatives_keep_beside_the_decoder_is_ignored(prefix, name):
    sorted_out = sort_out([f"{prefix}{name}", f"{prefix}mask_decoder.iou_token.weight"])
    assert sorted_out.ignored == (f"{prefix}{name}",)


@pytest.mark.parametrize("name", ["text_encoder.weight", "mask_downsampler.weight", "pixel_mean.weight", "head.bias"])
def test_anything_else_has_to_be_accounted_for(name):
    sorted_out = sort_out([name, "mask_decoder.iou_token.weight"])
    assert sorted_out.tensors[name] == name
    assert sorted_out.ignored == ()


@pytest.mark.parametrize("name", ["mask_decoder.fpn.weight", "mask_decoder.q.lora_A", "prompt_encoder.pixel_mean"])
def test_nothing_inside_the_decoder_is_ignored(name):
    assert sort_out([name]).tensors == {name: name}


def test_two_tensors_of_one_name_are_refused_with_all_clashes_listed():
    names = ["mask_decoder.a", "module.mask_decoder.a", "prompt_encoder.b", "sam.prompt_encoder.b", "mask_decoder.c"]
    message = (
        "Several tensors of the checkpoint claim the same name:\n"
        "  mask_decoder.a: mask_decoder.a, module.mask_decoder.a\n"
        "  prompt_encoder.b: prompt_encoder.b, sam.prompt_encoder.b"
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        sort_out(names)


def test_a_decoder_beside_a_wrapped_one_clashes_with_it():
    with pytest.raises(CheckpointError, match="claim the same name"):
        sort_out(["model.mask_decoder.a", "mask_decoder.a"])


def test_a_file_without_decoder_has_none():
    assert not sort_out(["image_encoder.pos_embed", "decoder.base.weight"]).has_decoder
    assert sort_out(["image_encoder.pos_embed", "mask_decoder.a"]).has_decoder
