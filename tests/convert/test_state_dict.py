import dataclasses
import re
import subprocess
import sys
import types

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from random_model import FAMILIES as RELATIVES

from sam_jax.config import TINY, SamConfig
from sam_jax.convert.state_dict import from_torch, identify, mixed_leaves, to_torch
from sam_jax.convert.tables.families import FAMILIES
from sam_jax.convert.tables.gaps import Gaps
from sam_jax.convert.tables.names import official
from sam_jax.convert.tables.rules import DECODER, NAMINGS, flax_shapes, slots, torch_shapes
from sam_jax.convert.tables.settings import OWN
from sam_jax.errors import CheckpointError

TINY_AS_READ = dataclasses.replace(TINY, heads=8, image_size=(1024, 1024), grid_size=(64, 64))
SAMED = dataclasses.replace(SamConfig(), multimask_outputs=8)
GAUSSIAN = "shared_image_embedding.positional_embedding"
TWIN = "prompt_encoder.shared_embedding.positional_embedding"


class Stored:
    """A tensor that counts how often its data is read."""

    def __init__(self, array: np.ndarray):
        self.shape, self.dtype, self.array, self.reads = array.shape, array.dtype, array, 0

    def read(self) -> np.ndarray:
        self.reads += 1
        return self.array


def state_dict(config=TINY, naming="meta", dtype=np.float32) -> dict[str, np.ndarray]:
    """Random bits, so that NaNs, infinities and both zeros are among the numbers."""
    rng = np.random.default_rng(0)
    return {
        name: np.frombuffer(rng.bytes(np.prod(shape) * np.dtype(dtype).itemsize), dtype).reshape(shape)
        for name, shape in torch_shapes(config, naming).items()
    }


def model(config) -> types.SimpleNamespace:
    return types.SimpleNamespace(config=config)


def assert_same_bits(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert (one[name].dtype, one[name].shape) == (other[name].dtype, other[name].shape), name
        assert one[name].tobytes() == other[name].tobytes(), name


def error_of(tensors, **options) -> str:
    with pytest.raises(CheckpointError) as caught:
        from_torch(tensors, **options)
    return str(caught.value)


@pytest.mark.parametrize("config", [SamConfig(), TINY, SAMED], ids=["full", "tiny", "nine masks"])
@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_there_and_back_is_the_identity_bit_for_bit(dtype, naming, config):
    tensors = state_dict(config, naming, dtype)
    converted = from_torch(tensors)
    back = to_torch(model(converted.config), converted.variables, naming)
    assert_same_bits(back, tensors)
    assert all(array.flags.c_contiguous for array in back.values())


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("family", RELATIVES)
def test_relatives_survive_the_way_there_and_back(family, naming):
    """Hugging Face's SAM 2 reads the Gaussian matrix under both names: a file with one gives it a random second one."""
    config = dataclasses.replace(TINY_AS_READ, **RELATIVES[family])
    if config.efficient_sam:  # which has no mask prompts, whose channels would be told by them
        config = dataclasses.replace(config, mask_channels=SamConfig().mask_channels)
    tensors = state_dict(config, naming)
    if config.object_score:
        tensors = {official(name, naming): tensor for name, tensor in tensors.items()}
        tensors |= {TWIN: tensors[GAUSSIAN]} if naming == "hf" else {}
    converted = from_torch(tensors)
    assert dataclasses.replace(converted.config, block_norm_eps=1e-5) == config
    assert_same_bits(to_torch(model(converted.config), converted.variables, naming), tensors)


@pytest.mark.parametrize("naming", NAMINGS)
def test_one_naming_turns_into_the_other(naming):
    converted = from_torch(state_dict(TINY, "meta"))
    other = to_torch(model(converted.config), converted.variables, naming)
    assert_same_bits(to_torch(model(TINY), from_torch(other).variables, "meta"), state_dict(TINY, "meta"))


def test_the_variables_are_the_documented_tree():
    converted = from_torch(state_dict())
    assert converted.variables.keys() == {"params", "constants"}
    assert converted.variables["constants"].keys() == {"prompt_encoder"}
    block = converted.variables["params"]["mask_decoder"]["two_way"]["block_1"]
    assert block["token_to_image"]["query"]["kernel"].shape == (32, 16)
    assert converted.variables["params"]["prompt_encoder"]["label_embedding"].shape == (4, 32)


def test_square_matrices_are_transposed_too():
    """Their shapes would hide a forgotten transpose."""
    tensors = state_dict(SamConfig())
    params = from_torch(tensors).variables["params"]["mask_decoder"]
    for name, projection in {"q": "query", "k": "key", "v": "value", "out": "out"}.items():
        weight = tensors[f"mask_decoder.transformer.layers.1.self_attn.{name}_proj.weight"]
        np.testing.assert_array_equal(params["two_way"]["block_1"]["self_attention"][projection]["kernel"], weight.T)
    for layer in (0, 1):
        for mask in range(4):
            weight = tensors[f"mask_decoder.output_hypernetworks_mlps.{mask}.layers.{layer}.weight"]
            np.testing.assert_array_equal(params["hypernetworks"][f"layer_{layer}"]["kernel"][mask], weight.T)
        weight = tensors[f"mask_decoder.iou_prediction_head.layers.{layer}.weight"]
        np.testing.assert_array_equal(params["iou_head"][f"layer_{layer}"]["kernel"], weight.T)


def test_labels_and_masks_are_stacked_in_their_order():
    tensors = state_dict()
    params = from_torch(tensors).variables["params"]
    for label in range(4):
        expected = tensors[f"prompt_encoder.point_embeddings.{label}.weight"][0]
        np.testing.assert_array_equal(params["prompt_encoder"]["label_embedding"][label], expected)
    for mask in range(4):
        expected = tensors[f"mask_decoder.output_hypernetworks_mlps.{mask}.layers.2.bias"]
        np.testing.assert_array_equal(params["mask_decoder"]["hypernetworks"]["layer_2"]["bias"][mask], expected)
    np.testing.assert_array_equal(params["mask_decoder"]["mask_tokens"], tensors["mask_decoder.mask_tokens.weight"])


def test_only_the_decoders_tensors_are_read_and_each_once():
    tensors = {name: Stored(array) for name, array in state_dict().items()}
    encoder = {"image_encoder.pos_embed": Stored(np.zeros((1, 8, 8, 768), np.float32))}
    from_torch(tensors | encoder)
    assert {tensor.reads for tensor in tensors.values()} == {1}
    assert encoder["image_encoder.pos_embed"].reads == 0


def test_identifying_reads_nothing():
    tensors = {name: Stored(array) for name, array in state_dict().items()}
    found = identify(tensors)
    assert not found.gaps
    assert (found.config, found.naming, found.family) == (TINY_AS_READ, "meta", FAMILIES["sam"])
    assert not any(tensor.reads for tensor in tensors.values())


def test_the_variables_do_not_share_memory_with_the_file():
    tensors = state_dict()
    variables = from_torch(tensors).variables
    bias = variables["params"]["mask_decoder"]["two_way"]["final_norm"]["bias"]
    assert bias.flags.writeable
    assert not np.shares_memory(bias, tensors["mask_decoder.transformer.norm_final_attn.bias"])


def test_a_conversion_says_what_it_is_and_what_it_left_out():
    encoder = {
        "image_encoder.pos_embed": np.zeros((1, 32, 32, 768)),
        "image_encoder.patch_embed.proj.weight": np.zeros((768, 3, 16, 16)),
        "pixel_mean": np.zeros(3),
    }
    converted = from_torch(state_dict() | encoder)
    assert converted.family is FAMILIES["sam_vit_b"]
    assert converted.naming == "meta"
    assert converted.ignored == tuple(encoder)
    assert converted.config == dataclasses.replace(TINY_AS_READ, image_size=(512, 512), grid_size=(32, 32))


def test_a_family_that_is_asked_for_wins_over_the_names():
    converted = from_torch(state_dict(), family="efficientvit_sam")
    assert converted.family is FAMILIES["efficientvit_sam"]
    assert (converted.config.block_norm_eps, converted.config.final_norm_eps) == (1e-6, 1e-6)


def test_an_unknown_family_is_a_value_error():
    with pytest.raises(ValueError, match="There is no family 'vit_b'"):
        from_torch(state_dict(), family="vit_b")


def test_wrapped_tensors_keep_their_names_in_messages():
    tensors = {f"model.module.{name}": array for name, array in state_dict().items()}
    tensors["model.module.mask_decoder.extra"] = np.zeros(3, np.float32)
    assert "1 unexpected:\n  model.module.mask_decoder.extra (3,)" in error_of(tensors)


@pytest.mark.parametrize("naming", NAMINGS)
def test_each_tensor_is_missed(naming):
    tensors = state_dict(TINY, naming)
    for slot in slots(TINY, naming):
        gaps = identify({name: tensor for name, tensor in tensors.items() if name != slot.name}).gaps
        assert gaps == Gaps(missing=(f"{slot.name} {slot.shape}",))


@pytest.mark.parametrize("naming", NAMINGS)
def test_each_misshapen_tensor_is_named_and_no_other(naming):
    tensors = state_dict(TINY, naming)
    for slot in slots(TINY, naming):
        wrong = tuple(length + 1 for length in slot.shape)
        gaps = identify(tensors | {slot.name: np.zeros(wrong, np.float32)}).gaps
        assert gaps == Gaps(misshapen=(f"{slot.name}: got {wrong}, wanted {slot.shape}",))


@pytest.mark.parametrize(
    "part",
    [
        "prompt_encoder.",
        "mask_decoder.transformer.",
        "mask_decoder.transformer.layers.0.",
        "mask_decoder.transformer.layers.1.",
        "mask_decoder.output_hypernetworks_mlps.",
        "mask_decoder.output_hypernetworks_mlps.3.",
        "mask_decoder.iou_prediction_head.",
    ],
)
@pytest.mark.parametrize("naming", NAMINGS)
def test_a_whole_part_is_missed(naming, part):
    tensors = state_dict(TINY, naming)
    lost = {name for name in tensors if name.startswith(part)}
    gaps = identify({name: tensors[name] for name in tensors if name not in lost}).gaps
    assert {line.partition(" ")[0] for line in gaps.missing} == lost
    assert dataclasses.replace(gaps, missing=()) == Gaps()


def test_a_decoder_alone_is_told_what_it_lacks():
    names = {name: name.removeprefix("mask_decoder.") for name in state_dict() if name.startswith("mask_decoder.")}
    message = error_of({short: state_dict()[name] for name, short in names.items()})
    assert "17 missing:\n  prompt_encoder.pe_layer.positional_encoding_gaussian_matrix (2, 16)" in message


def test_all_faults_are_listed_at_once():
    tensors = state_dict()
    del tensors["mask_decoder.iou_token.weight"], tensors["prompt_encoder.no_mask_embed.weight"]
    tensors["prompt_encoder.clip.weight"] = np.zeros((3, 4), np.float32)
    tensors["mask_decoder.mask_tokens.weight"] = np.zeros((4, 33), np.float32)
    tensors["mask_decoder.output_upscaling.1.bias"] = np.zeros(8, np.int64)
    assert error_of(tensors) == (
        "The checkpoint does not fit the decoder of Segment Anything (meta names).\n"
        "2 missing:\n"
        "  prompt_encoder.no_mask_embed.weight (1, 32)\n"
        "  mask_decoder.iou_token.weight (1, 32)\n"
        "1 unexpected:\n"
        "  prompt_encoder.clip.weight (3, 4)\n"
        "1 misshapen:\n"
        "  mask_decoder.mask_tokens.weight: got (4, 33), wanted (4, 32)\n"
        "1 not float:\n"
        "  mask_decoder.output_upscaling.1.bias: int64"
    )


@pytest.mark.parametrize("dtype", [np.int32, np.bool_, np.complex64, ml_dtypes.float8_e4m3fn])
def test_weights_of_no_float_dtype_are_refused(dtype):
    name = "mask_decoder.iou_token.weight"
    message = error_of(state_dict() | {name: np.zeros((1, 32), dtype)})
    assert f"1 not float:\n  {name}: {np.dtype(dtype)}" in message


def finite() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=x.shape).astype(np.float32) for name, x in state_dict().items()}


@pytest.mark.parametrize(
    ("one", "other", "widest"),
    [
        (np.float16, np.float32, np.float32),
        (ml_dtypes.bfloat16, np.float16, np.float32),
        (ml_dtypes.bfloat16, np.float64, np.float64),
    ],
)
def test_a_leaf_has_the_widest_dtype_of_its_tensors(one, other, widest):
    tensors = {name: tensor.astype(other) for name, tensor in finite().items()}
    for name in (
        "prompt_encoder.point_embeddings.2.weight",
        "mask_decoder.output_hypernetworks_mlps.1.layers.0.bias",
        "mask_decoder.iou_token.weight",  # a leaf of its own
    ):
        tensors[name] = tensors[name].astype(one)
    leaves = {
        "params/prompt_encoder/label_embedding": str(np.dtype(widest)),
        "params/mask_decoder/hypernetworks/layer_0/bias": str(np.dtype(widest)),
    }
    assert mixed_leaves(tensors, identify(tensors), DECODER) == leaves
    back = to_torch(model(TINY), from_torch(tensors).variables)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name].astype(np.float64), tensor.astype(np.float64))
    assert back["mask_decoder.iou_token.weight"].dtype == one
    assert back["prompt_encoder.point_embeddings.2.weight"].dtype == widest


@pytest.mark.parametrize("prefix", ["net.sam.", "state_dict.net.sam.", "ema.module.", "a.b.c.d.", "teacher.sam_"])
@pytest.mark.parametrize("names", ["meta", "hf"])
def test_a_decoder_below_any_one_prefix_is_found(prefix, names):
    tensors = to_torch(model(TINY), from_torch(finite()).variables, names)
    below = {_below(prefix, name): tensor for name, tensor in tensors.items()}
    extra = {"optimizer.state.0.exp_avg": np.zeros(3, np.float32)}
    found = from_torch(below | extra)
    assert found.ignored == ("optimizer.state.0.exp_avg",)
    assert_same_bits(to_torch(model(TINY), found.variables, names), tensors)


def _below(prefix, name):
    if prefix.endswith("sam_"):  # Meta's own prefix of the two parts
        return prefix + name if name.startswith(("prompt_", "mask_")) else prefix.removesuffix("sam_") + name
    return prefix + name


@pytest.mark.parametrize(("first", "second"), [("net.", "ema.module."), ("", "ema."), ("model.", "model_ema.")])
def test_of_several_decoders_one_is_chosen_by_its_prefix(first, second):
    tensors = finite()
    other = {name: tensor + 1 for name, tensor in tensors.items()}
    both = {first + name: x for name, x in tensors.items()} | {second + name: x for name, x in other.items()}
    listed = re.escape(f"below the prefixes {first!r}, {second!r}. Choose one")
    with pytest.raises(CheckpointError, match=f"holds 2 decoders.*{listed}: --prefix on the command line"):
        from_torch(both)
    for prefix, want in ((first, tensors), (second, other), (second.rstrip("."), other)):
        assert_same_bits(to_torch(model(TINY), from_torch(both, prefix=prefix).variables), want)
    with pytest.raises(CheckpointError, match=r"No decoder is below the prefix 'no\.'\. Prefixes of decoders: "):
        from_torch(both, prefix="no")


def test_leaves_may_differ_in_dtype():
    tensors = state_dict()
    tensors["mask_decoder.iou_token.weight"] = np.ones((1, 32), ml_dtypes.bfloat16)
    converted = from_torch(tensors)
    assert_same_bits(to_torch(model(TINY), converted.variables), tensors)


@pytest.mark.parametrize("names", [(GAUSSIAN,), (TWIN,), (GAUSSIAN, TWIN)], ids=["one", "other", "both"])
def test_hugging_face_files_may_hold_the_gaussian_matrix_under_either_name(names):
    tensors = state_dict(TINY, "hf")
    matrix = tensors.pop(GAUSSIAN)
    converted = from_torch(tensors | dict.fromkeys(names, matrix))
    assert_same_bits(to_torch(model(TINY), converted.variables, "hf"), state_dict(TINY, "hf"))


@pytest.mark.parametrize("other", [np.nextafter(1, 2, dtype=np.float32), np.float64(1), np.ones(16, np.float32)])
def test_two_different_gaussian_matrices_are_refused(other):
    tensors = state_dict(TINY, "hf")
    tensors[GAUSSIAN] = np.ones((2, 16), np.float32)
    tensors[TWIN] = np.full(np.broadcast_shapes(np.shape(other), (16,) if np.ndim(other) else (2, 16)), other)
    assert error_of(tensors) == f"{GAUSSIAN} and {TWIN} must be the same matrix, and they differ."


@pytest.mark.parametrize("name", [GAUSSIAN, TWIN])
def test_meta_names_have_no_hugging_face_matrix(name):
    assert f"1 unexpected:\n  {name} (2, 16)" in error_of(state_dict() | {name: np.zeros((2, 16), np.float32)})


def test_hugging_face_settings_are_used():
    sizes = {"image_size": 128, "patch_size": 16}
    settings = {
        "model_type": "sam",
        "vision_config": sizes,
        "prompt_encoder_config": sizes | {"mask_input_channels": 8},
        "mask_decoder_config": {
            "hidden_size": 32,
            "num_attention_heads": 2,
            "mlp_dim": 64,
            "iou_head_hidden_dim": 32,
            "layer_norm_eps": 1e-3,
        },
    }
    converted = from_torch(state_dict(TINY, "hf"), settings=settings)
    assert converted.config == dataclasses.replace(TINY, block_norm_eps=1e-3)
    named = from_torch(state_dict(TINY, "hf"), settings=settings, family="lite_medsam")
    assert named.config == dataclasses.replace(TINY, block_norm_eps=1e-5, image_size=(256, 256), grid_size=(64, 64))


def test_hugging_face_settings_that_the_weights_contradict_are_refused():
    message = error_of(state_dict(TINY, "hf"), settings={"model_type": "sam"})
    assert f"  {GAUSSIAN}: got (2, 16), wanted (2, 128)" in message


@pytest.mark.parametrize("naming", NAMINGS)
def test_our_own_settings_are_used(naming):
    config = dataclasses.replace(TINY, final_norm_eps=0.25)
    own = {OWN: {"family": "edge_sam", "decoder": dataclasses.asdict(config)}}
    converted = from_torch(state_dict(TINY, naming), settings=own)
    assert (converted.config, converted.family) == (config, FAMILIES["edge_sam"])
    named = from_torch(state_dict(TINY, naming), settings=own, family="sam_med2d")
    assert named.config == dataclasses.replace(TINY, image_size=(256, 256), grid_size=(16, 16))
    assert " misshapen:" in error_of(state_dict(SAMED, naming), settings=own)


def test_hugging_face_settings_with_metas_names_are_refused():
    assert error_of(state_dict(), settings={"model_type": "sam"}).startswith("The config.json is of another checkpoint")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "This checkpoint is not a SAM decoder: it holds no tensors."),
        ({"image_encoder.pos_embed": (1, 64, 64, 8)}, "This checkpoint is an image encoder alone."),
        ({"0.conv.weight": (16, 3)}, "This checkpoint is not a SAM decoder: of its 1 tensors, the first are 0.conv"),
    ],
)
def test_other_checkpoints_are_refused_before_their_gaps_are_listed(tensors, message):
    assert error_of({name: np.zeros(shape, np.float32) for name, shape in tensors.items()}).startswith(message)


def test_variables_with_faults_are_refused_with_all_of_them_listed():
    variables = from_torch(state_dict()).variables
    decoder = variables["params"]["mask_decoder"]
    del decoder["iou_token"]
    decoder["hq_token"] = np.zeros((1, 32), np.float32)
    decoder["mask_tokens"] = np.zeros((3, 32), np.float32)
    variables["constants"]["prompt_encoder"]["gaussian_matrix"] = np.zeros((2, 16), np.int32)
    variables["batch_stats"] = {"mean": np.zeros(2)}
    message = (
        "The variables do not fit the model's configuration.\n"
        "1 missing:\n"
        "  params/mask_decoder/iou_token (32,)\n"
        "2 unexpected:\n"
        "  params/mask_decoder/hq_token (1, 32)\n"
        "  batch_stats/mean (2,)\n"
        "1 misshapen:\n"
        "  params/mask_decoder/mask_tokens: got (3, 32), wanted (4, 32)\n"
        "1 not float:\n"
        "  constants/prompt_encoder/gaussian_matrix: int32"
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        to_torch(model(TINY), variables)


def test_an_unknown_naming_is_refused():
    with pytest.raises(ValueError, match="naming must be one of meta, hf, got 'torch'"):
        to_torch(model(TINY), from_torch(state_dict()).variables, "torch")


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_arrays_of_jax_can_be_written(dtype):
    tensors = {name: np.ones(shape, dtype) for name, shape in torch_shapes(TINY).items()}
    variables = jax_arrays(from_torch(tensors).variables)
    assert_same_bits(to_torch(model(TINY), variables), tensors)


def jax_arrays(tree):
    return {key: jax_arrays(value) if isinstance(value, dict) else jnp.asarray(value) for key, value in tree.items()}


def test_every_leaf_of_the_tree_is_filled():
    def paths(tree, above=""):
        for key, value in tree.items():
            yield from paths(value, f"{above}{key}/") if isinstance(value, dict) else [(above + key, value.shape)]

    assert dict(paths(from_torch(state_dict()).variables)) == flax_shapes(TINY)


def test_the_converter_needs_neither_jax_nor_torch():
    code = "import sys, sam_jax.convert.state_dict; print([n for n in ('jax', 'flax', 'torch') if n in sys.modules])"
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
