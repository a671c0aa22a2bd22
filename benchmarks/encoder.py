"""Time of one image through an image encoder, beside PyTorch's.

    PYTHONPATH=tests python -m benchmarks.encoder --model vit_b --repeats 5

gives both sides the same random weights and the same image, runs them in turns, and prints JSON: medians and minima of
seconds, and the largest difference of the two embeddings in root mean squares of PyTorch's. Compilation and a first run
are not in the figures. PyTorch's side is the official package, for SAM 2 `rf-sam-2`, and for MobileSAM the encoder of
`torch_tiny_vit.py`; `tiny` is done in a moment and says nothing but that the script works.
"""

import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import torch
import tyro
from flax import linen as nn
from parity.encoders import official_vit, randomise, tiny_vit_variables, vit_variables
from parity.official_sam2 import random_sam2
from parity.relatives import tensors_of
from parity.torch_tiny_vit import TorchTinyViT

from sam_jax.convert.encoders import encoder_from_torch
from sam_jax.decoder.features import maps_of
from sam_jax.encoders.config import HIERA_TINY, TINY_VIT, VIT_B, VIT_H, VIT_L, VIT_TINY, ViTConfig
from sam_jax.encoders.hiera import Hiera
from sam_jax.encoders.tiny_vit import TinyViT
from sam_jax.encoders.vit import ImageEncoder

Encode = Callable[[], np.ndarray]


class Pair(NamedTuple):
    """The same encoder twice; PyTorch's maps a batch of images, channels first."""

    theirs: Callable[[torch.Tensor], torch.Tensor]
    ours: nn.Module
    variables: Any
    image_size: tuple[int, int]


def vit(config: ViTConfig) -> Pair:
    encoder = randomise(official_vit(config))
    return Pair(encoder, ImageEncoder(config), vit_variables(config, encoder), config.image_size)


def mobile_sam() -> Pair:
    encoder = randomise(TorchTinyViT(TINY_VIT).eval().requires_grad_(False))
    variables = tiny_vit_variables(TINY_VIT, encoder)
    return Pair(lambda image: encoder(image)[0], TinyViT(), variables, TINY_VIT.image_size)


def sam2() -> Pair:
    model = random_sam2(HIERA_TINY)

    def encode(image: torch.Tensor) -> torch.Tensor:
        return model.forward_image(image)["backbone_fpn"][-1] + model.no_mem_embed[..., None].transpose(1, 2)

    return Pair(encode, Hiera(), encoder_from_torch(tensors_of(model)).variables, HIERA_TINY.image_size)


MODELS: dict[str, Callable[[], Pair]] = {
    "tiny": partial(vit, VIT_TINY),
    "vit_b": partial(vit, VIT_B),
    "vit_l": partial(vit, VIT_L),
    "vit_h": partial(vit, VIT_H),
    "mobile_sam": mobile_sam,
    "sam2.1_hiera_tiny": sam2,
}


def both_sides(pair: Pair) -> tuple[Encode, Encode]:
    """Return a function for each side, PyTorch's first, that encodes one image and returns it channels last."""
    image = np.random.default_rng(0).standard_normal((*pair.image_size, 3), np.float32)
    variables = jax.device_put(pair.variables)
    apply = jax.jit(pair.ours.apply)

    @torch.inference_mode()
    def encode_theirs() -> np.ndarray:
        return pair.theirs(torch.from_numpy(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()

    def encode_ours() -> np.ndarray:
        features: Any = jax.block_until_ready(apply(variables, image))
        return np.asarray(maps_of(features)["embedding"])

    return encode_theirs, encode_ours


def seconds(encode: Encode) -> float:
    begin = time.perf_counter()
    encode()
    return time.perf_counter() - begin


def summary(times: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(times), 3), "minimum": round(min(times), 3)}


def main(
    model: Literal["tiny", "vit_b", "vit_l", "vit_h", "mobile_sam", "sam2.1_hiera_tiny"] = "vit_b", repeats: int = 5
) -> None:
    """Compare the two sides.

    Args:
      model: which encoder.
      repeats: runs of each side.
    """
    sides = both_sides(MODELS[model]())
    theirs, ours = (encode() for encode in sides)
    turns = [[seconds(encode) for encode in sides] for _ in range(repeats)]
    torch_times, jax_times = (list(times) for times in zip(*turns, strict=True))
    figures: dict[str, Any] = {
        "model": model,
        "pytorch_seconds": summary(torch_times),
        "jax_seconds": summary(jax_times),
        "speedup": round(statistics.median(a / b for a, b in turns), 2),
        "largest_difference": float(f"{np.abs(ours - theirs).max() / np.sqrt(np.square(theirs).mean()):.1e}"),
        "repeats": repeats,
        "pytorch_threads": torch.get_num_threads(),
        "device": jax.devices()[0].device_kind,
        "load_average": os.getloadavg()[0],
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    tyro.cli(main)
