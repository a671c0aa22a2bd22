"""TinyViT against MobileSAM's, which `torch_tiny_vit.py` has in plain PyTorch: its package needs timm."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
from parity.encoders import randomise, tiny_vit_variables
from parity.torch_tiny_vit import TorchTinyViT

from sam_jax.encoders.config import TINY_VIT, TinyViTConfig
from sam_jax.encoders.tiny_vit import Stage, TinyViT

TOLERANCE = {"float32": 1e-5, "float64": 1e-11}
"""In standard deviations of PyTorch's values."""

SMALL = TinyViTConfig(
    widths=(8, 16, 24, 32),
    depths=(1, 1, 2, 1),
    heads=(2, 3, 4),
    window_sizes=(3, 5, 4),
    out_width=16,
    image_size=(128, 128),
)
CONFIGS = {
    "square": SMALL,
    "wide": dataclasses.replace(SMALL, image_size=(64, 96)),
    "stem of 1x1 convolutions": dataclasses.replace(SMALL, stem_stride=1, image_size=(32, 32)),
    "one window": dataclasses.replace(SMALL, window_sizes=(8, 4, 4), image_size=(64, 64)),
}


def torch_outputs(encoder: torch.nn.Module, image: np.ndarray) -> dict[str, np.ndarray]:
    embedding, stages = encoder(torch.tensor(image).permute(2, 0, 1)[None])
    named = {f"stage {i}": stage for i, stage in enumerate(stages)} | {
        "early feature": stages[1],
        "embedding": embedding,
    }
    return {name: tensor[0].permute(1, 2, 0).numpy() for name, tensor in named.items()}


def our_outputs(config: TinyViTConfig, variables, image) -> dict[str, jax.Array]:
    @jax.jit
    def run(variables, image):
        (embedding, early), state = TinyViT(config).apply(
            variables,
            image,
            method="encode_with_early_feature",
            capture_intermediates=lambda module, _: isinstance(module, Stage),
        )
        stages = {path.replace("_", " "): value["__call__"][0] for path, value in state["intermediates"].items()}
        return stages | {"early feature": early, "embedding": embedding}

    return run(variables, image)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_each_stage_and_the_embedding(config, dtype, compare):
    encoder = randomise(TorchTinyViT(config).eval().requires_grad_(False))
    encoder = encoder.double() if dtype == "float64" else encoder
    config = dataclasses.replace(config, dtype=dtype)
    image = np.random.default_rng(1).standard_normal((*config.image_size, 3)).astype(dtype)
    variables = tiny_vit_variables(config, encoder)
    named = lambda outputs: {f"TinyViT {name}": array for name, array in outputs.items()}  # noqa: E731
    compare(
        named(our_outputs(config, variables, image)),
        named(torch_outputs(encoder, image)),
        TOLERANCE[dtype],
    )


def test_mobile_sam_s_sizes():
    with torch.device("meta"):
        encoder = TorchTinyViT(TINY_VIT)
    image = jax.ShapeDtypeStruct((1024, 1024, 3), np.float32)
    ours = jax.eval_shape(TinyViT().init, jax.random.key(0), image)
    count = lambda collection: sum(leaf.size for leaf in jax.tree.leaves(ours[collection]))  # noqa: E731
    assert count("params") == sum(parameter.numel() for parameter in encoder.parameters())
    assert count("constants") == sum(buffer.numel() for buffer in encoder.buffers() if buffer.ndim)
