"""The official PyTorch decoder with random weights, and what each of its parts returns."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from parity.stand_ins import import_package
from scipy import ndimage
from stages import TWO

from sam_jax.config import SamConfig


def connected_components(mask: np.ndarray, connectivity: int) -> tuple[Any, ...]:
    """Do what OpenCV's `connectedComponentsWithStats` does, as far as the official code uses it."""
    assert connectivity == 8
    regions, number = ndimage.label(mask, np.ones((3, 3)))
    sizes = np.bincount(regions.reshape(-1), minlength=number + 1)
    return number + 1, regions, sizes[:, None], None


segment_anything = import_package("segment_anything")
modeling = segment_anything.modeling


def prompt_encoder(kind: Any, config: SamConfig) -> torch.nn.Module:
    """Return a prompt encoder of a class that has the official one's arguments."""
    return kind(
        embed_dim=config.width,
        image_embedding_size=config.grid_size,
        input_image_size=config.image_size,
        mask_in_chans=config.mask_channels,
    )


def mask_decoder(kind: Any, transformer: Any, config: SamConfig, **more: Any) -> torch.nn.Module:
    """Return a mask decoder of classes that have the official ones' arguments, and perhaps more."""
    return kind(
        transformer_dim=config.width,
        transformer=transformer(
            depth=config.depth,
            embedding_dim=config.width,
            num_heads=config.heads,
            mlp_dim=config.mlp_width,
            attention_downsample_rate=config.attention_downsample,
        ),
        num_multimask_outputs=config.multimask_outputs,
        iou_head_depth=config.iou_head_depth,
        iou_head_hidden_dim=config.iou_head_width,
        **more,
    )


def embed(
    encoder: Any, points: Any = None, labels: Any = None, boxes: Any = None, masks: Any = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sparse and dense embeddings of prompts, given as for `Prompts.build`."""
    return encoder(
        points=None if points is None else (as_float(points), as_float(labels)),
        boxes=None if boxes is None else as_float(boxes),
        masks=None if masks is None else as_float(masks)[:, None],
    )


class OfficialDecoder(torch.nn.Module):
    """The official prompt encoder and mask decoder, its tensors named as in the official checkpoints."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        self.prompt_encoder = prompt_encoder(modeling.PromptEncoder, config)
        self.mask_decoder = mask_decoder(modeling.MaskDecoder, modeling.TwoWayTransformer, config)

    def forward(self, embedding: Any, **prompts: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the logits and IoUs of all masks, of one image [h, w, c] and the prompt sets of `embed`."""
        sparse, dense = self.embed(**prompts)
        logits, iou = self.mask_decoder.predict_masks(
            image_embeddings=torch.tensor(np.asarray(embedding)).permute(2, 0, 1)[None],
            image_pe=self.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
        )
        return logits.numpy(), iou.numpy()

    def embed(self, **prompts: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sparse and dense embeddings of prompts, given as for `Prompts.build`."""
        return embed(self.prompt_encoder, **prompts)

    def tensors(self) -> dict[str, np.ndarray]:
        """Return the state dict as numpy arrays."""
        return {name: tensor.numpy().copy() for name, tensor in self.state_dict().items()}

    def set_tensors(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Take over the weights of a state dict of numpy arrays."""
        self.load_state_dict({name: torch.tensor(array) for name, array in tensors.items()})


def as_float(value: Any) -> torch.Tensor:
    """Return an array as a tensor of float32."""
    return torch.tensor(np.asarray(value, np.float32))


def random_decoder(config: SamConfig, seed: int = 0) -> OfficialDecoder:
    """Return an official decoder with random weights, with norm scales and biases that are no ones and zeros."""
    torch.manual_seed(seed)
    decoder = OfficialDecoder(config).eval().requires_grad_(False)
    randomise_norms(decoder)
    return decoder


def randomise_norms(module: torch.nn.Module) -> None:
    """Give every norm of a module a random scale and bias."""
    for part in module.modules():
        if re.search("LayerNorm|GroupNorm", type(part).__name__):
            part.weight.uniform_(0.5, 1.5)
            part.bias.normal_(std=0.3)


PARTS = {
    r"mask_downscaling\.0": "mask_downscaling/conv_0",
    r"mask_downscaling\.1": "mask_downscaling/norm_0",
    r"mask_downscaling\.3": "mask_downscaling/conv_1",
    r"mask_downscaling\.4": "mask_downscaling/norm_1",
    r"mask_downscaling": "mask_downscaling",
    r"transformer\.layers\.(\d)\.self_attn": r"two_way/block_\1/self_attention",
    r"transformer\.layers\.(\d)\.norm1": r"two_way/block_\1/norm_self_attention",
    r"transformer\.layers\.(\d)\.cross_attn_token_to_image": r"two_way/block_\1/token_to_image",
    r"transformer\.layers\.(\d)\.norm2": r"two_way/block_\1/norm_token_to_image",
    r"transformer\.layers\.(\d)\.mlp": r"two_way/block_\1/mlp",
    r"transformer\.layers\.(\d)\.norm3": r"two_way/block_\1/norm_mlp",
    r"transformer\.layers\.(\d)\.cross_attn_image_to_token": r"two_way/block_\1/image_to_token",
    r"transformer\.layers\.(\d)\.norm4": r"two_way/block_\1/norm_image_to_token",
    r"transformer\.layers\.(\d)": r"two_way/block_\1",
    r"transformer\.final_attn_token_to_image": "two_way/final_token_to_image",
    r"transformer": "two_way",
    r"output_upscaling\.0": "upscaling/conv_0",
    r"output_upscaling\.1": "upscaling/norm",
    r"output_upscaling": "upscaling",
    r"output_hypernetworks_mlps\.(\d)": r"hypernetworks/\1",
    r"iou_prediction_head": "iou_head",
}
"""Official module -> the path of ours that returns the same."""


def record(module: torch.nn.Module, run: Callable[[], Any]) -> dict[str, np.ndarray]:
    """Call `run` and return what each part of `module` returned for the first prompt set, by our path, channels last.

    A part that returns tokens and image tokens has two entries, `<path> tokens` and `<path> image`.
    """
    outputs: dict[str, np.ndarray] = {}

    def keep(path: str) -> Any:
        def hook(part: torch.nn.Module, inputs: Any, output: Any) -> None:
            named = zip(TWO, output, strict=True) if isinstance(output, tuple) else [("", output)]
            outputs.update({path + name: channels_last(tensor[0]) for name, tensor in named})

        return hook

    hooks = [
        part.register_forward_hook(keep(re.sub(pattern, path, name)))
        for name, part in module.named_modules()
        for pattern, path in PARTS.items()
        if re.fullmatch(pattern, name)
    ]
    run()
    for hook in hooks:
        hook.remove()
    return outputs


def channels_last(tensor: torch.Tensor) -> np.ndarray:
    """Return a map [c, h, w] as [h, w, c], anything else as it is."""
    return (tensor.permute(1, 2, 0) if tensor.ndim == 3 else tensor).numpy().copy()


def difference(ours: Any, official: Any) -> float:
    """Return the largest difference, as a share of the official values' root mean square."""
    ours, official = np.asarray(ours, np.float64), np.asarray(official, np.float64)
    assert ours.shape == official.shape
    return float(np.abs(ours - official).max() / np.sqrt(np.mean(official**2)))
