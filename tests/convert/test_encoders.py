"""Image encoders: settings found from names and shapes, state dicts to Flax trees and back, and refusals."""

import dataclasses
import functools
import math
import re
import subprocess
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from sam_jax.convert.encoders import TABLES, encoder_from_torch, encoder_to_torch, identify_encoder
from sam_jax.convert.tables.families import FAMILIES
from sam_jax.convert.tables.gaps import Gaps
from sam_jax.convert.tables.rules import NAMINGS, flax_shapes, slots, torch_shapes
from sam_jax.convert.tables.settings import OWN
from sam_jax.encoders.config import (
    EFFICIENT_SAM_S,
    EFFICIENT_SAM_TI,
    EFFICIENT_VIT_L0,
    EFFICIENT_VIT_L1,
    EFFICIENT_VIT_L2,
    EFFICIENT_VIT_XL0,
    EFFICIENT_VIT_XL1,
    LITE_MEDSAM,
    SLIM_SAM_50,
    SLIM_SAM_77,
    TINY_VIT,
    VIT_B,
    VIT_H,
    VIT_L,
    VIT_TINY,
    EfficientViTConfig,
    TinyViTConfig,
    config_from_dict,
    config_to_dict,
    kind_of,
)
from sam_jax.encoders.encoder import make_encoder
from sam_jax.errors import CheckpointError

SMALL = TinyViTConfig(
    widths=(8, 16, 24, 32), depths=(1, 2, 3, 1), heads=(2, 3, 4), window_sizes=(3, 5, 4), out_width=16
)
VITS = {
    "tiny": VIT_TINY,
    "wide": dataclasses.replace(VIT_TINY, depth=2, global_blocks=(0,), image_size=(64, 112)),
    "window as high as the grid": dataclasses.replace(VIT_TINY, image_size=(48, 112)),
    "window larger than the grid": dataclasses.replace(VIT_TINY, window_size=14),
    "other sizes": dataclasses.replace(VIT_TINY, heads=4, mlp_width=64, patch_size=8, out_width=24),
}
PRESETS = {"vit_b": VIT_B, "vit_l": VIT_L, "vit_h": VIT_H}
SLIM = {"SlimSAM 50": SLIM_SAM_50, "SlimSAM 77": SLIM_SAM_77}
TINY_VITS = {"small": SMALL, "other ratio": dataclasses.replace(SMALL, ratio=2), "mobile_sam": TINY_VIT}
EFFICIENT = EfficientViTConfig(
    widths=(4, 8, 12, 16, 24), depths=(1, 1, 2, 1, 2), head_width=8, neck_width=20, neck_depth=1, out_width=16
)
EFFICIENT_VITS = {
    "small": EFFICIENT,
    "small xl": dataclasses.replace(
        EFFICIENT_VIT_XL0, widths=(4, 8, 12, 16, 24, 40), head_width=8, neck_width=20, out_width=16
    ),
    "other settings": dataclasses.replace(
        EFFICIENT,
        kinds=("inverted", "fused", "attention", "attention"),
        ratios=(1, 2, 3, 4),
        neighbourhood=7,
        neck_ratio=2,
    ),
}
EFFICIENT_PRESETS = {
    "l0": (EFFICIENT_VIT_L0, 272, 30_751_236),
    "l1": (EFFICIENT_VIT_L1, 378, 43_617_810),
    "l2": (EFFICIENT_VIT_L2, 508, 57_307_428),
    "xl0": (EFFICIENT_VIT_XL0, 318, 112_946_956),
    "xl1": (EFFICIENT_VIT_XL1, 564, 199_376_174),
}
"""Settings, and the tensors and numbers that the official class has, the counters of its batch norms among them."""
SMALL_ONES = {"vit": VIT_TINY, "tiny_vit": SMALL, "efficient_vit": EFFICIENT}
AMBIGUOUS = dataclasses.replace(VIT_TINY, window_size=8)


@functools.cache
def shapes_of(config: Any, naming: str = "meta") -> dict[str, tuple[int, ...]]:
    return torch_shapes(config, naming, TABLES[kind_of(config)])


def described(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return tensors that cannot be read."""
    return {name: types.SimpleNamespace(shape=shape, dtype=np.dtype(np.float32)) for name, shape in shapes.items()}


def state_dict(config: Any, naming: str = "meta", dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """Random bits, so that NaNs, infinities and both zeros are among the numbers."""
    rng = np.random.default_rng(0)
    return {
        name: np.frombuffer(rng.bytes(math.prod(shape) * np.dtype(dtype).itemsize), dtype).reshape(shape)
        for name, shape in shapes_of(config, naming).items()
    }


def own(config: Any) -> dict[str, Any]:
    return {OWN: {"encoder": config_to_dict(config)}}


def encoder(config: Any) -> types.SimpleNamespace:
    return types.SimpleNamespace(config=config)


def bits(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in tensors.items()}


def error_of(tensors: dict[str, Any], **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        encoder_from_torch(tensors, **options)
    return str(caught.value)


@pytest.mark.parametrize("config", (VITS | PRESETS | SLIM).values(), ids=VITS | PRESETS | SLIM)
@pytest.mark.parametrize("naming", NAMINGS)
def test_shapes_tell_a_vit(config, naming):
    found = identify_encoder(described(shapes_of(config, naming)))
    assert (found.config, found.naming, found.gaps) == (config, naming, Gaps())


@pytest.mark.parametrize("config", TINY_VITS.values(), ids=TINY_VITS)
def test_shapes_tell_a_tiny_vit(config):
    found = identify_encoder(described(shapes_of(config)))
    assert (found.config, found.naming, found.gaps) == (config, "meta", Gaps())
    assert found.family is FAMILIES["mobile_sam"]


@pytest.mark.parametrize("config", EFFICIENT_VITS.values(), ids=EFFICIENT_VITS)
def test_shapes_tell_an_efficient_vit(config):
    found = identify_encoder(described(shapes_of(config)))
    assert (found.config, found.naming, found.gaps) == (config, "meta", Gaps())
    assert found.family is FAMILIES["efficientvit_sam"]


@pytest.mark.parametrize(("config", "tensors", "numbers"), EFFICIENT_PRESETS.values(), ids=EFFICIENT_PRESETS)
def test_the_official_efficient_vits_are_told_and_counted(config, tensors, numbers):
    shapes = shapes_of(config)
    counters = [name.replace("running_mean", "num_batches_tracked") for name in shapes if "running_mean" in name]
    assert len(shapes) + len(counters) == tensors
    assert sum(map(math.prod, shapes.values())) + len(counters) == numbers
    found = identify_encoder(described(shapes | dict.fromkeys(counters, ())))
    assert (found.config, found.gaps, found.ignored) == (config, Gaps(), tuple(counters))


def test_names_and_shapes_of_an_efficient_vit():
    """A tensor of each make, as the official class names and shapes it."""
    stages, neck = "image_encoder.backbone.stages.", "image_encoder.neck."
    l0 = {
        f"{stages}0.op_list.0.conv.weight": (32, 3, 3, 3),
        f"{stages}0.op_list.1.main.conv2.norm.running_var": (32,),
        f"{stages}1.op_list.0.main.spatial_conv.conv.weight": (512, 32, 3, 3),
        f"{stages}2.op_list.1.main.point_conv.conv.weight": (128, 512, 1, 1),
        f"{stages}3.op_list.0.main.inverted_conv.conv.bias": (2048,),
        f"{stages}3.op_list.4.main.depth_conv.conv.weight": (1024, 1, 3, 3),
        f"{stages}4.op_list.0.main.point_conv.norm.weight": (512,),
        f"{stages}4.op_list.4.context_module.main.qkv.conv.weight": (1536, 512, 1, 1),
        f"{stages}4.op_list.4.context_module.main.aggreg.0.0.weight": (1536, 1, 5, 5),
        f"{stages}4.op_list.4.context_module.main.aggreg.0.1.weight": (1536, 32, 1, 1),
        f"{stages}4.op_list.4.context_module.main.proj.conv.weight": (512, 1024, 1, 1),
        f"{stages}4.op_list.4.local_module.main.inverted_conv.conv.weight": (3072, 512, 1, 1),
        f"{neck}input_ops.0.op_list.0.conv.weight": (256, 512, 1, 1),
        f"{neck}input_ops.2.op_list.0.norm.bias": (256,),
        f"{neck}middle.op_list.3.main.spatial_conv.conv.weight": (256, 256, 3, 3),
        f"{neck}output_ops.0.op_list.0.conv.bias": (256,),
        "image_encoder.norm.weight": (256,),
    }
    assert l0.items() <= shapes_of(EFFICIENT_VIT_L0).items()
    xl0 = {
        f"{stages}3.op_list.2.main.spatial_conv.conv.weight": (1024, 256, 3, 3),
        f"{stages}5.op_list.3.context_module.main.aggreg.0.0.weight": (3072, 1, 3, 3),
        f"{neck}input_ops.0.op_list.0.conv.weight": (256, 1024, 1, 1),
        f"{neck}middle.op_list.5.main.point_conv.conv.weight": (256, 1024, 1, 1),
    }
    assert xl0.items() <= shapes_of(EFFICIENT_VIT_XL0).items()


def test_the_family_tells_the_frames_of_an_efficient_vit():
    for settings in (None, own(EFFICIENT)):
        named = identify_encoder(described(shapes_of(EFFICIENT)), family="sam_med2d", settings=settings).config
        assert (named.grid_size, named.image_size, named.prompt_frame) == ((16, 16), (128, 128), (256, 256))


@pytest.mark.parametrize("config", [EFFICIENT_SAM_TI, EFFICIENT_SAM_S], ids=["ti", "s"])
def test_shapes_tell_efficient_sam_s_vit(config):
    tensors = described(shapes_of(config))
    found = identify_encoder(tensors)
    assert (len(tensors), found.config, found.naming, found.gaps) == (153, config, "meta", Gaps())
    assert found.family is FAMILIES["efficient_sam"]


@pytest.mark.parametrize("lost", ["image_encoder.pos_embed", "image_encoder.blocks.11.norm1.weight"])
def test_a_loss_in_efficient_sam_s_vit_is_told(lost):
    tensors = described(shapes_of(EFFICIENT_SAM_TI))
    shape = tensors.pop(lost).shape
    assert identify_encoder(tensors).gaps == Gaps(missing=(f"{lost} {shape}",))


def test_the_family_tells_the_size_of_a_tiny_vit_s_images():
    assert identify_encoder(described(shapes_of(LITE_MEDSAM))).config == LITE_MEDSAM
    named = identify_encoder(described(shapes_of(SMALL)), family="lite_medsam", settings=own(SMALL))
    assert named.config == dataclasses.replace(SMALL, image_size=(256, 256), preprocessing="lite_medsam")
    assert named.family is FAMILIES["lite_medsam"]


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("settings", [None, own(VIT_TINY)])
def test_the_family_tells_the_preprocessing(naming, settings):
    """No weights do: MedSAM's are ViT-B's. Settings of our own do, unless a family is asked for."""
    tensors = described(shapes_of(VIT_TINY, naming))
    assert identify_encoder(tensors, settings=settings).config.preprocessing == "sam"
    assert identify_encoder(tensors, family="medsam", settings=settings).config.preprocessing == "medsam"
    kept = own(dataclasses.replace(VIT_TINY, preprocessing="medsam"))
    assert identify_encoder(tensors, settings=kept).config.preprocessing == "medsam"


@pytest.mark.parametrize("config", [*VITS.values(), *TINY_VITS.values(), *EFFICIENT_VITS.values(), VIT_B, LITE_MEDSAM])
def test_the_flax_tree_is_the_one_that_the_module_makes(config):
    image = jax.ShapeDtypeStruct((*config.image_size, 3), jnp.float32)
    made = jax.eval_shape(make_encoder(config).init, jax.random.key(0), image)
    found = flax_shapes(config, TABLES[kind_of(config)])
    assert found == {path: leaf.shape for path, leaf in flatten_dict(made, sep="/").items()}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize(
    ("config", "naming"),
    [
        *((config, naming) for config in VITS.values() for naming in NAMINGS),
        *((config, "meta") for config in (SMALL, *EFFICIENT_VITS.values())),
    ],
)
def test_there_and_back_is_the_identity_bit_for_bit(config, naming, dtype):
    tensors = state_dict(config, naming, dtype)
    found = encoder_from_torch(tensors)
    assert found.config == config
    assert bits(encoder_to_torch(encoder(config), found.variables, naming)) == bits(tensors)


def test_one_naming_turns_into_the_other():
    hf = encoder_to_torch(encoder(VIT_TINY), encoder_from_torch(state_dict(VIT_TINY)).variables, "hf")
    meta = encoder_to_torch(encoder(VIT_TINY), encoder_from_torch(hf).variables, "meta")
    assert bits(meta) == bits(state_dict(VIT_TINY))


@pytest.mark.parametrize("config", SMALL_ONES.values(), ids=SMALL_ONES)
def test_each_tensor_is_missed(config):
    tensors = described(shapes_of(config))
    for slot in slots(config, "meta", TABLES[kind_of(config)]):
        found = identify_encoder({name: tensor for name, tensor in tensors.items() if name != slot.name})
        [line] = found.gaps.missing
        assert line.partition(" ")[0] == slot.name
        assert found.gaps == Gaps(missing=(line,))


@pytest.mark.parametrize("config", SMALL_ONES.values(), ids=SMALL_ONES)
def test_each_misshapen_tensor_is_named_and_no_other(config):
    for slot in slots(config, "meta", TABLES[kind_of(config)]):
        wrong = tuple(length + 2 for length in slot.shape)
        tensors = described(shapes_of(config) | {slot.name: wrong})
        found = identify_encoder(tensors, settings=own(config))
        assert found.gaps == Gaps(misshapen=(f"{slot.name}: got {wrong}, wanted {slot.shape}",))


@pytest.mark.parametrize("name", ["pos_embed", "blocks.0.attn.rel_pos_h", "blocks.1.attn.rel_pos_w", "neck.0.weight"])
def test_a_misshapen_tensor_is_outvoted(name):
    name = f"image_encoder.{name}"
    wrong = tuple(length + 2 for length in shapes_of(VIT_TINY)[name])
    found = identify_encoder(described(shapes_of(VIT_TINY) | {name: wrong}))
    assert found.gaps == Gaps(misshapen=(f"{name}: got {wrong}, wanted {shapes_of(VIT_TINY)[name]}",))


def test_a_lost_last_block_does_not_make_another_vit_b():
    tensors = {name: shape for name, shape in shapes_of(VIT_B).items() if ".blocks.11." not in name}
    assert len(identify_encoder(described(tensors)).gaps.missing) == 14


def test_all_faults_are_listed_at_once():
    tensors = {f"model.{name}": array for name, array in state_dict(VIT_TINY).items()}
    del tensors["model.image_encoder.neck.1.bias"]
    tensors["model.image_encoder.blocks.0.attn.qkv.linear_a_q.weight"] = np.zeros((4, 32), np.float32)
    tensors["model.image_encoder.neck.2.weight"] = np.zeros((32, 32, 1, 1), np.float32)
    tensors["model.image_encoder.blocks.3.norm1.bias"] = np.zeros(32, np.int64)
    assert error_of(tensors) == (
        "The checkpoint does not fit the image encoder ViT (meta names).\n"
        "1 missing:\n"
        "  image_encoder.neck.1.bias (32,)\n"
        "1 unexpected:\n"
        "  model.image_encoder.blocks.0.attn.qkv.linear_a_q.weight (4, 32)\n"
        "1 misshapen:\n"
        "  model.image_encoder.neck.2.weight: got (32, 32, 1, 1), wanted (32, 32, 3, 3)\n"
        "1 not float:\n"
        "  model.image_encoder.blocks.3.norm1.bias: int64"
    )


def test_windows_as_large_as_the_grid_need_settings():
    tensors = state_dict(AMBIGUOUS)
    assert "windows are as large as its grid of 8 x 8, so that its shapes do not tell" in error_of(tensors)
    found = encoder_from_torch(tensors, settings=own(AMBIGUOUS))
    assert found.config == AMBIGUOUS
    assert bits(encoder_to_torch(encoder(AMBIGUOUS), found.variables)) == bits(tensors)


def test_only_the_encoder_s_tensors_are_read():
    rest = {"mask_decoder.iou_token.weight": (1, 256), "prompt_encoder.x": (3,), "pixel_mean": (3, 1, 1)}
    found = encoder_from_torch(state_dict(VIT_TINY) | described(rest))
    assert found.ignored == tuple(rest)


def test_what_a_tiny_vit_does_not_use_is_not_read():
    unused = {
        "image_encoder.norm_head.weight": (32,),
        "image_encoder.head.weight": (1000, 32),
        "image_encoder.layers.0.blocks.0.conv1.bn.num_batches_tracked": (),
    }
    found = encoder_from_torch(state_dict(SMALL) | described(unused))
    assert found.ignored == tuple(unused)


@pytest.mark.parametrize("prefix", ["module.", "model.", "model_state.sam.", "state_dict.", "model_state_dict.module."])
def test_a_wrapped_encoder_is_found(prefix):
    tensors = {prefix + name: tensor for name, tensor in described(shapes_of(VIT_TINY)).items()}
    beside = described({"optimizer.image_encoder.pos_embed": (1, 8, 8, 32)})
    found = identify_encoder(tensors | beside)
    config = dataclasses.replace(VIT_TINY, preprocessing="micro_sam") if prefix == "model_state.sam." else VIT_TINY
    assert (found.config, found.gaps, found.ignored) == (config, Gaps(), tuple(beside))


def test_two_encoders_are_refused():
    tensors = described(shapes_of(VIT_TINY) | {"module.image_encoder.pos_embed": (1, 8, 8, 32)})
    message = "Several tensors claim the name image_encoder.pos_embed: image_encoder.pos_embed, module.image_encoder."
    assert error_of(tensors).startswith(message)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mask_decoder.iou_token.weight", "The checkpoint holds no image encoder."),
        ("image_encoder.features.0.0.c.weight", r"The checkpoint's image encoder \(RepViT-SAM\) cannot be converted"),
        (
            "image_encoder.backbone.input_stem.x",
            r"The checkpoint's image encoder \(EfficientViT-SAM\) cannot be converted",
        ),
        ("detector.backbone.vision_backbone.trunk.x", r"The checkpoint's image encoder \(SAM 3\) cannot be converted"),
        ("image_encoder.trunk.body.0.norm1.weight", "Of its 1 tensors, the first are image_encoder.trunk.body.0"),
    ],
)
def test_other_encoders_are_refused(name, message):
    assert re.search(message, error_of(described({name: (1, 2)})))


def test_a_hostile_number_of_blocks_is_refused_before_a_table_is_made():
    extra = {"image_encoder.blocks.9999.norm1.weight": (32,)}
    assert "10000 blocks are asked for; at most 1024" in error_of(described(shapes_of(VIT_TINY) | extra))
    extra = {"image_encoder.neck.middle.op_list.9999.x": (32,)}
    assert "10000 blocks are asked for; at most 1024" in error_of(described(shapes_of(EFFICIENT) | extra))
    for config, name, value in ((VIT_TINY, "depth", 10**12), (EFFICIENT, "neck_depth", 10**12)):
        forged = {OWN: {"encoder": config_to_dict(config) | {name: value}}}
        assert "1000000000000 blocks are asked for" in error_of(described(shapes_of(config)), settings=forged)


@pytest.mark.parametrize("shape", [(), (0, 0, 0, 0), (1, 8, 8, 0), (1, 0, 8, 32), (1, 10**9, 10**9, 10**9)])
@pytest.mark.parametrize("config", SMALL_ONES.values(), ids=SMALL_ONES)
def test_impossible_shapes_are_one_clear_error(config, shape):
    for name in shapes_of(config):
        assert error_of(described(shapes_of(config) | {name: shape}))
    assert error_of(described(dict.fromkeys(shapes_of(config), shape)))


def test_our_own_settings_that_the_weights_contradict_are_refused():
    other = dataclasses.replace(VIT_TINY, window_size=5)
    assert "  image_encoder.blocks.0.attn.rel_pos_h: got (5, 16), wanted (9, 16)" in error_of(
        described(shapes_of(VIT_TINY)), settings=own(other)
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (3, "must be an object, got 3"),
        ({"encoder": 3}, "An encoder's settings must be a JSON object with a kind, got 3"),
        ({"encoder": {"kind": "resnet"}}, "must be one of vit, tiny_vit, efficient_vit, hiera, got 'resnet'"),
        ({"encoder": {"kind": "vit", "widht": 3}}, "Unknown settings for ViTConfig: widht"),
        ({"encoder": {"kind": "vit", "width": "3"}}, "ViTConfig.width must be a positive integer, got '3'"),
        ({"encoder": {"kind": "vit", "global_blocks": 3}}, "a value of a wrong type"),
        ({"encoder": {"kind": "tiny_vit", "depths": 3}}, "a value of a wrong type"),
        ({"encoder": None, "family": "resnet"}, "name a family 'resnet', which is not known"),
    ],
)
def test_damaged_settings_are_one_clear_error(settings, message):
    assert message in error_of(described(shapes_of(VIT_TINY)), settings={OWN: settings})


@pytest.mark.parametrize("config", [VIT_TINY, AMBIGUOUS, SMALL, LITE_MEDSAM, VIT_H, EFFICIENT])
def test_settings_survive_json(config):
    assert config_from_dict(config_to_dict(config)) == config


@pytest.mark.parametrize("config", [VIT_TINY, VIT_H, SMALL])
def test_settings_with_a_ratio_of_the_mlp_s_width_are_read(config):
    """Files that were written before `mlp_width` have it."""
    values = config_to_dict(config)
    if mlp_width := values.pop("mlp_width", None):
        values["mlp_ratio"] = mlp_width // values["width"]
    assert config_from_dict(values) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mlp_ratio": "4"}, "ViTConfig.mlp_width must be a positive integer, got '4'"),
        ({"mlp_ratio": 4, "width": "3"}, "ViTConfig.width must be a positive integer, got '3'"),
    ],
)
def test_a_damaged_ratio_is_one_clear_error(change, message):
    with pytest.raises(ValueError, match=message):
        config_from_dict({"kind": "vit"} | change)


HF = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 128,
    "window_size": 8,
    "global_attn_indexes": [1, 3],
    "output_channels": 32,
}


@pytest.mark.parametrize("hidden", [{}, {"mlp_dim": 128}, {"mlp_ratio": 4.0}, {"mlp_ratio": 2, "mlp_dim": 128}])
def test_a_hugging_face_config_is_used(hidden):
    """Its windows are as large as the grid."""
    found = encoder_from_torch(state_dict(AMBIGUOUS, "hf"), settings={"vision_config": HF | hidden})
    assert (found.config, found.naming) == (AMBIGUOUS, "hf")
    assert identify_encoder(described(shapes_of(VIT_B, "hf")), settings={"model_type": "sam"}).config == VIT_B


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act 'relu' where only 'gelu'"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps 1e-05 where only 1e-06"),
        ({"use_rel_pos": False}, "use_rel_pos False where only True"),
        ({"mlp_ratio": "4"}, "mlp_ratio must be a number, got '4'"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio must be a number, got nan"),
        ({"mlp_dim": 100.5}, "mlp_dim must be a positive integer, got 100.5"),
        ({"mlp_dim": 100}, "layers.0.mlp.lin1.weight: got (128, 32), wanted (100, 32)"),
        ({"image_size": [128, 128]}, "image_size must be a positive integer"),
        ({"global_attn_indexes": 3}, "No image encoder can have this checkpoint's sizes"),
        ({"num_hidden_layers": 10**9}, "1000000000 blocks are asked for"),
        ({"num_hidden_layers": 3}, "ViTConfig.global_blocks must be rising indices of the 3 blocks"),
        ({"window_size": 4}, "vision_encoder.layers.0.attn.rel_pos_h: got (15, 16), wanted (7, 16)"),
    ],
)
def test_a_hugging_face_config_that_means_something_else_is_refused(change, message):
    tensors = described(shapes_of(AMBIGUOUS, "hf"))
    assert message in error_of(tensors, settings={"vision_config": HF | change})


def test_variables_with_faults_are_refused():
    variables = encoder_from_torch(state_dict(VIT_TINY)).variables
    del variables["params"]["position_embedding"]
    with pytest.raises(CheckpointError, match=r"1 missing:\n  params/position_embedding \(8, 8, 32\)$"):
        encoder_to_torch(encoder(VIT_TINY), variables)


@pytest.mark.parametrize(("config", "title"), [(SMALL, "TinyViT"), (EFFICIENT, "EfficientViT")])
def test_hugging_face_has_names_for_a_vit_alone(config, title):
    variables = encoder_from_torch(state_dict(config)).variables
    with pytest.raises(ValueError, match=f"Hugging Face has no names for {title}"):
        encoder_to_torch(encoder(config), variables, "hf")


def test_there_are_two_namings():
    variables = encoder_from_torch(state_dict(SMALL)).variables
    with pytest.raises(ValueError, match="naming must be one of meta, hf, got 'torch'"):
        encoder_to_torch(encoder(SMALL), variables, "torch")


def test_importing_the_rules_imports_no_jax():
    code = "import sys, sam_jax.convert.encoders; print([n for n in ('jax', 'flax', 'torch') if n in sys.modules])"
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
