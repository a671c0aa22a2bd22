import dataclasses
import itertools
import math
import re

import jax
import pytest
from flax.traverse_util import flatten_dict

from sam_jax.config import TINY, SamConfig
from sam_jax.convert.tables.rules import NAMINGS, flax_shapes, measure, sizes, slots, torch_shapes
from sam_jax.decoder.model import Sam

# Names and shapes of segment_anything's PromptEncoder and MaskDecoder as built by build_sam.py, weight and bias.
OFFICIAL_MODULES = """
prompt_encoder.mask_downscaling.0               4 1 2 2       4
prompt_encoder.mask_downscaling.1               4             4
prompt_encoder.mask_downscaling.3               16 4 2 2      16
prompt_encoder.mask_downscaling.4               16            16
prompt_encoder.mask_downscaling.6               256 16 1 1    256
mask_decoder.transformer.layers.{0,1}.self_attn.{q,k,v,out}_proj                    256 256     256
mask_decoder.transformer.layers.{0,1}.cross_attn_token_to_image.{q,k,v}_proj        128 256     128
mask_decoder.transformer.layers.{0,1}.cross_attn_token_to_image.out_proj            256 128     256
mask_decoder.transformer.layers.{0,1}.cross_attn_image_to_token.{q,k,v}_proj        128 256     128
mask_decoder.transformer.layers.{0,1}.cross_attn_image_to_token.out_proj            256 128     256
mask_decoder.transformer.layers.{0,1}.norm{1,2,3,4}                                 256         256
mask_decoder.transformer.layers.{0,1}.mlp.lin1                                      2048 256    2048
mask_decoder.transformer.layers.{0,1}.mlp.lin2                                      256 2048    256
mask_decoder.transformer.final_attn_token_to_image.{q,k,v}_proj                     128 256     128
mask_decoder.transformer.final_attn_token_to_image.out_proj                         256 128     256
mask_decoder.transformer.norm_final_attn                                            256         256
mask_decoder.output_upscaling.0                              256 64 2 2     64
mask_decoder.output_upscaling.1                              64             64
mask_decoder.output_upscaling.3                              64 32 2 2      32
mask_decoder.output_hypernetworks_mlps.{0,1,2,3}.layers.{0,1}    256 256    256
mask_decoder.output_hypernetworks_mlps.{0,1,2,3}.layers.2        32 256     32
mask_decoder.iou_prediction_head.layers.{0,1}                256 256        256
mask_decoder.iou_prediction_head.layers.2                    4 256          4
"""

OFFICIAL_TENSORS = """
prompt_encoder.pe_layer.positional_encoding_gaussian_matrix  2 128
prompt_encoder.point_embeddings.{0,1,2,3}.weight             1 256
prompt_encoder.not_a_point_embed.weight                      1 256
prompt_encoder.no_mask_embed.weight                          1 256
mask_decoder.iou_token.weight                                1 256
mask_decoder.mask_tokens.weight                              4 256
"""

FLAX = """
constants/prompt_encoder/gaussian_matrix                             2 128
params/prompt_encoder/label_embedding                                4 256
params/prompt_encoder/{not_a_point,no_mask}_embedding                256
params/prompt_encoder/mask_downscaling/conv_0/kernel                 2 2 1 4
params/prompt_encoder/mask_downscaling/conv_1/kernel                 2 2 4 16
params/prompt_encoder/mask_downscaling/conv_2/kernel                 1 1 16 256
params/prompt_encoder/mask_downscaling/{conv_0/bias,norm_0/scale,norm_0/bias}         4
params/prompt_encoder/mask_downscaling/{conv_1/bias,norm_1/scale,norm_1/bias}         16
params/prompt_encoder/mask_downscaling/conv_2/bias                   256
params/mask_decoder/iou_token                                        256
params/mask_decoder/mask_tokens                                      4 256
params/mask_decoder/two_way/block_{0,1}/self_attention/{query,key,value,out}/kernel                  256 256
params/mask_decoder/two_way/block_{0,1}/self_attention/{query,key,value,out}/bias                    256
params/mask_decoder/two_way/block_{0,1}/{token_to_image,image_to_token}/{query,key,value}/kernel     256 128
params/mask_decoder/two_way/block_{0,1}/{token_to_image,image_to_token}/{query,key,value}/bias       128
params/mask_decoder/two_way/block_{0,1}/{token_to_image,image_to_token}/out/kernel                   128 256
params/mask_decoder/two_way/block_{0,1}/{token_to_image,image_to_token}/out/bias                     256
params/mask_decoder/two_way/block_{0,1}/norm_{self_attention,token_to_image,mlp,image_to_token}/{scale,bias}  256
params/mask_decoder/two_way/block_{0,1}/mlp/layer_0/kernel           256 2048
params/mask_decoder/two_way/block_{0,1}/mlp/layer_0/bias             2048
params/mask_decoder/two_way/block_{0,1}/mlp/layer_1/kernel           2048 256
params/mask_decoder/two_way/block_{0,1}/mlp/layer_1/bias             256
params/mask_decoder/two_way/final_token_to_image/{query,key,value}/kernel    256 128
params/mask_decoder/two_way/final_token_to_image/{query,key,value}/bias      128
params/mask_decoder/two_way/final_token_to_image/out/kernel          128 256
params/mask_decoder/two_way/final_token_to_image/out/bias            256
params/mask_decoder/two_way/final_norm/{scale,bias}                  256
params/mask_decoder/upscaling/conv_0/kernel                          2 2 64 256
params/mask_decoder/upscaling/{conv_0/bias,norm/scale,norm/bias}     64
params/mask_decoder/upscaling/conv_1/kernel                          2 2 32 64
params/mask_decoder/upscaling/conv_1/bias                            32
params/mask_decoder/hypernetworks/layer_{0,1}/kernel                 4 256 256
params/mask_decoder/hypernetworks/layer_{0,1}/bias                   4 256
params/mask_decoder/hypernetworks/layer_2/kernel                     4 256 32
params/mask_decoder/hypernetworks/layer_2/bias                       4 32
params/mask_decoder/iou_head/layer_{0,1}/kernel                      256 256
params/mask_decoder/iou_head/layer_{0,1}/bias                        256
params/mask_decoder/iou_head/layer_2/kernel                          256 4
params/mask_decoder/iou_head/layer_2/bias                            4
"""

# What Hugging Face calls the parts that it renamed. The index inside its three-layer MLPs shifts.
HF_RENAMES = (
    (r"prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix", "shared_image_embedding.positional_embedding"),
    (r"point_embeddings", "point_embed"),
    (r"mask_downscaling\.0", "mask_embed.conv1"),
    (r"mask_downscaling\.1", "mask_embed.layer_norm1"),
    (r"mask_downscaling\.3", "mask_embed.conv2"),
    (r"mask_downscaling\.4", "mask_embed.layer_norm2"),
    (r"mask_downscaling\.6", "mask_embed.conv3"),
    (r"\.norm(\d|_final_attn)", r".layer_norm\1"),
    (r"output_upscaling\.0", "upscale_conv1"),
    (r"output_upscaling\.1", "upscale_layer_norm"),
    (r"output_upscaling\.3", "upscale_conv2"),
    (r"(mlps\.\d|iou_prediction_head)\.layers\.0", r"\1.proj_in"),
    (r"(mlps\.\d|iou_prediction_head)\.layers\.1", r"\1.layers.0"),
    (r"(mlps\.\d|iou_prediction_head)\.layers\.2", r"\1.proj_out"),
)

VARIANTS = {
    "full": SamConfig(),
    "tiny": TINY,
    "many masks": dataclasses.replace(TINY, multimask_outputs=12),
    "two masks": dataclasses.replace(TINY, multimask_outputs=1),
    "deep": dataclasses.replace(TINY, depth=12, iou_head_depth=5),
    "shallow": dataclasses.replace(TINY, depth=1, iou_head_depth=1),
    "odd widths": dataclasses.replace(TINY, mlp_width=48, mask_channels=20, iou_head_width=24, attention_downsample=4),
}


def spell_out(line: str) -> list[str]:
    """Expand the braces of a line, as a shell does."""
    parts = [part[1:-1].split(",") if part.startswith("{") else [part] for part in re.split(r"(\{.*?\})", line)]
    return ["".join(words) for words in itertools.product(*parts)]


def read_shapes(text: str) -> dict[str, tuple[int, ...]]:
    entries = [line.split() for row in text.strip().splitlines() for line in spell_out(row)]
    return {name: tuple(map(int, shape)) for name, *shape in entries}


def official() -> dict[str, tuple[int, ...]]:
    modules = read_shapes(OFFICIAL_MODULES)
    weights = {f"{name}.weight": shape[:-1] for name, shape in modules.items()}
    biases = {f"{name}.bias": shape[-1:] for name, shape in modules.items()}
    return weights | biases | read_shapes(OFFICIAL_TENSORS)


def hf_name(name: str) -> str:
    for pattern, replacement in HF_RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def test_the_table_is_the_official_list_of_tensors():
    assert torch_shapes(SamConfig()) == official()


def test_the_official_list_has_its_published_counts():
    count = {part: [s for n, s in official().items() if n.startswith(part)] for part in ("prompt", "mask")}
    assert {part: len(shapes) for part, shapes in count.items()} == {"prompt": 17, "mask": 120}
    numbers = {part: sum(map(math.prod, shapes)) for part, shapes in count.items()}
    assert numbers == {"prompt": 6_476, "mask": 4_058_340}


def test_the_hf_names_are_the_official_ones_renamed():
    assert torch_shapes(SamConfig(), "hf") == {hf_name(name): shape for name, shape in official().items()}


def test_the_flax_tree_is_the_documented_one():
    assert flax_shapes(SamConfig()) == read_shapes(FLAX)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_the_flax_tree_is_the_one_that_the_model_makes(config):
    made = jax.eval_shape(Sam(config).init, jax.random.key(0))
    assert flax_shapes(config) == {path: leaf.shape for path, leaf in flatten_dict(made, sep="/").items()}


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("naming", NAMINGS)
def test_each_tensor_has_one_place_and_each_place_one_tensor(naming, config):
    table = slots(config, naming)
    assert len({slot.name for slot in table}) == len(table)
    assert len({(slot.path, slot.position) for slot in table}) == len(table)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_a_stacked_leaf_is_filled_in_order(config):
    table = slots(config, "meta")
    for path in flax_shapes(config):
        group = [slot for slot in table if slot.path == path]
        if group[0].stack is None:
            assert [slot.position for slot in group] == [None]
        else:
            assert [slot.position for slot in group] == list(range(group[0].stack))


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_both_sides_hold_the_same_numbers(config):
    of_torch = sum(map(math.prod, torch_shapes(config).values()))
    of_hf = sum(map(math.prod, torch_shapes(config, "hf").values()))
    of_flax = sum(map(math.prod, flax_shapes(config).values()))
    assert of_torch == of_hf == of_flax


@pytest.mark.parametrize("naming", NAMINGS)
def test_the_stacked_index_is_the_one_in_the_name(naming):
    stacked = [slot for slot in slots(SamConfig(), naming) if slot.position is not None]
    assert len(stacked) == 4 + 4 * 6
    assert all(re.search(r"(point_embed\w*|mlps)\.(\d)", slot.name)[2] == str(slot.position) for slot in stacked)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("naming", NAMINGS)
def test_shapes_tell_the_sizes_that_made_them(naming, config):
    assert measure(torch_shapes(config, naming), slots(config, naming)) == sizes(config)


@pytest.mark.parametrize("odd", torch_shapes(TINY))
def test_one_misshapen_tensor_is_outvoted(odd):
    shapes = torch_shapes(TINY)
    shapes[odd] = tuple(length + 1 for length in shapes[odd])
    assert measure(shapes, slots(TINY, "meta")) == sizes(TINY)


def test_a_tensor_of_another_rank_has_no_vote():
    shapes = {"mask_decoder.iou_token.weight": (1, 2, 3), "mask_decoder.mask_tokens.weight": ()}
    assert measure(shapes, slots(TINY, "meta")) == {}
