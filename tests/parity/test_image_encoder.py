"""The image encoder against the official `ImageEncoderViT`, and against Hugging Face's."""

import copy
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from parity.encoders import official_vit, randomise, vit_variables

from sam_jax.convert.encoders import identify_encoder
from sam_jax.convert.tables.encoder_settings import vit_from_hf
from sam_jax.encoders.config import SLIM_SAM_50, SLIM_SAM_77, VIT_B, VIT_H, VIT_L, VIT_TINY
from sam_jax.encoders.vit import Block, ImageEncoder, resize_positions

TOLERANCE = {"float32": 1e-5, "float64": 1e-11}
"""In standard deviations of the official values."""

CONFIGS = {
    "square": dataclasses.replace(VIT_TINY, depth=3, global_blocks=(1, 2)),
    "wide": dataclasses.replace(VIT_TINY, depth=2, global_blocks=(0,), image_size=(64, 112)),
    "window larger than the map": dataclasses.replace(VIT_TINY, depth=2, global_blocks=(1,), window_size=14),
}


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def official_outputs(encoder: torch.nn.Module, image: np.ndarray) -> dict[str, np.ndarray]:
    """Return what the patch embedding, each block and the encoder give, channels last."""
    outputs = {}

    def keep(name):
        return lambda module, inputs, output: outputs.update({name: output[0].numpy()})

    hooks = [encoder.patch_embed.register_forward_hook(keep("patch embedding"))]
    hooks += [block.register_forward_hook(keep(f"block {i}")) for i, block in enumerate(encoder.blocks)]
    embedding = encoder(torch.tensor(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    for hook in hooks:
        hook.remove()
    return outputs | {"image embedding": embedding.numpy()}


def our_outputs(encoder: ImageEncoder, variables, image) -> dict[str, jax.Array]:
    def watched(module, method):
        return isinstance(module, Block) or module.name == "patch_embedding"

    @jax.jit
    def run(variables, image):
        embedding, state = encoder.apply(variables, image, capture_intermediates=watched)
        outputs = {path.replace("_", " "): value["__call__"][0] for path, value in state["intermediates"].items()}
        return outputs | {"image embedding": embedding}

    return run(variables, image)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_each_block_and_the_embedding(config, dtype, compare):
    encoder = randomise(official_vit(config))
    encoder = copy.deepcopy(encoder).double() if dtype == "float64" else encoder
    config = dataclasses.replace(config, dtype=dtype)
    image = noise(*config.image_size, 3).astype(dtype)
    ours = our_outputs(ImageEncoder(config), vit_variables(config, encoder), image)
    compare(ours, official_outputs(encoder, image), TOLERANCE[dtype])


def hugging_face_settings(config):
    return transformers.SamVisionConfig(
        hidden_size=config.width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        image_size=config.image_size[0],
        window_size=config.window_size,
        global_attn_indexes=list(config.global_blocks),
        output_channels=config.out_width,
        mlp_dim=config.mlp_width,
    )


@pytest.mark.parametrize("name", ["square", "SlimSAM 77"])
def test_hugging_face(name, compare):
    config = {**CONFIGS, "SlimSAM 77": dataclasses.replace(CONFIGS["square"], width=168, heads=12, mlp_width=696)}[name]
    settings = hugging_face_settings(config)
    assert vit_from_hf({"vision_config": settings.to_dict()}) == config
    model = randomise(transformers.SamVisionModel(settings).eval().requires_grad_(False))
    image = noise(*config.image_size, 3)
    official = model(torch.tensor(image).permute(2, 0, 1)[None]).last_hidden_state[0].permute(1, 2, 0)
    ours = jax.jit(ImageEncoder(config).apply)(vit_variables(config, model, "hf"), image)
    compare({"image embedding (hf)": ours}, {"image embedding (hf)": official}, 1e-5)


def test_gradients(compare):
    """Of the parameters of one windowed and one global block, through the whole encoder."""
    config = CONFIGS["wide"]
    encoder, image, weights = randomise(official_vit(config)), noise(*config.image_size, 3), noise(4, 7, 32, seed=1)
    variables = vit_variables(config, encoder)
    encoder.requires_grad_(True)
    embedding = encoder(torch.tensor(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    (embedding * torch.tensor(weights)).sum().backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in encoder.named_parameters()}
    official = {}
    for i in range(config.depth):
        official[f"gradient of block {i} qkv"] = gradients[f"blocks.{i}.attn.qkv.weight"].T
        official[f"gradient of block {i} relative height"] = gradients[f"blocks.{i}.attn.rel_pos_h"]
        official[f"gradient of block {i} relative width"] = gradients[f"blocks.{i}.attn.rel_pos_w"]

    def loss(params):
        return (ImageEncoder(config).apply({"params": params}, jnp.asarray(image)) * weights).sum()

    ours = jax.jit(jax.grad(loss))(variables["params"])
    found = {}
    for i in range(config.depth):
        attention = ours[f"block_{i}"]["attention"]
        found[f"gradient of block {i} qkv"] = attention["qkv"]["kernel"]
        found[f"gradient of block {i} relative height"] = attention["relative_height"]
        found[f"gradient of block {i} relative width"] = attention["relative_width"]
    compare(found, official, 1e-4)


def test_epsilon_of_the_block_norms(compare):
    """Tokens of a variance as small as the epsilon show which one it is."""
    config = CONFIGS["square"]
    encoder, tokens = randomise(official_vit(config)), 1e-3 * noise(8, 8, config.width)
    variables = {"params": vit_variables(config, encoder)["params"]["block_0"]}
    ours = jax.jit(Block(config, config.window(0)).apply)(variables, tokens)
    official = encoder.blocks[0](torch.tensor(tokens)[None])[0]
    compare({"block of small tokens": ours}, {"block of small tokens": official}, 1e-5)


def test_resized_positions_are_those_of_the_official_get_rel_pos(compare):
    """An official encoder interpolates relative positions that do not fit; absolute ones its users interpolate."""
    config = CONFIGS["square"]
    encoder = randomise(official_vit(config))
    variables = vit_variables(config, encoder)
    for size in ((96, 96), (64, 192)):
        new = dataclasses.replace(config, image_size=size)
        image, (height, width) = noise(*size, 3), new.grid_size
        resized = copy.deepcopy(encoder)
        positions = torch.nn.functional.interpolate(
            encoder.pos_embed.permute(0, 3, 1, 2), (height, width), mode="bilinear"
        )
        resized.pos_embed.data = positions.permute(0, 2, 3, 1)
        params = resize_positions(variables["params"], config, new)
        ours = jax.jit(ImageEncoder(new).apply)({"params": params}, image)
        official = official_outputs(resized, image)["image embedding"]
        compare({"image embedding, resized": ours}, {"image embedding, resized": official}, 1e-5)


@pytest.mark.parametrize("config", [VIT_B, VIT_L, VIT_H], ids=["vit_b", "vit_l", "vit_h"])
def test_presets_have_the_official_shapes(config):
    with torch.device("meta"):
        encoder = official_vit(config)
    image = jax.ShapeDtypeStruct((*config.image_size, 3), jnp.float32)
    ours = jax.eval_shape(ImageEncoder(config).init, jax.random.key(0), image)["params"]
    official = {name: math.prod(parameter.shape) for name, parameter in encoder.named_parameters()}
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(ours)) == sum(official.values())
    assert len(jax.tree.leaves(ours)) == len(official)


@pytest.mark.parametrize(
    ("config", "numbers"),
    [
        (SLIM_SAM_50, 23_897_216),
        (SLIM_SAM_77, 5_658_968),
    ],
    ids=["SlimSAM 50", "SlimSAM 77"],
)
def test_slim_sam_is_a_vit_b_with_other_widths(config, numbers):
    with torch.device("meta"):
        encoder = transformers.SamVisionModel(hugging_face_settings(config))
    tensors = encoder.state_dict()
    assert (len(tensors), sum(tensor.numel() for tensor in tensors.values())) == (177, numbers)
    assert identify_encoder(tensors).config == config


def test_vit_b_at_full_size(compare):
    """The first quarter of ViT-B at 1024 pixels, and its neck. `benchmarks/encoder.py` compares all of it."""
    config = dataclasses.replace(VIT_B, depth=3, global_blocks=(2,))
    encoder, image = randomise(official_vit(config)), noise(1024, 1024, 3)
    ours = our_outputs(ImageEncoder(config), vit_variables(config, encoder), image)
    # Over a million values the largest difference is larger than over a small map; float64 is as far from either side.
    compare(ours, official_outputs(encoder, image), 2e-5)
