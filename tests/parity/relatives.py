"""The decoders of SAM 2 (`rf-sam-2`) and of SAM-HQ (`segment-anything-hq`) in PyTorch, with random weights.

Both ask for torchvision, and SAM-HQ for timm. Neither is installed beside PyTorch's CPU build: what is used of them has
stand-ins while the packages are imported.
"""

import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from parity.official import as_float, batched_nms, box_area, randomise_norms
from PIL import Image
from torch.nn import functional

from sam_jax.config import SamConfig


class Resize(torch.nn.Module):
    """torchvision's on floats: bilinear, with antialias."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return functional.interpolate(image[None], self.size, mode="bilinear", align_corners=False, antialias=True)[0]


class Normalize(torch.nn.Module):
    """torchvision's: less the mean, divided by the deviation."""

    def __init__(self, mean: Any, std: Any) -> None:
        super().__init__()
        self.mean, self.std = (torch.tensor(value)[:, None, None] for value in (mean, std))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return (image - self.mean) / self.std


class ToTensor:
    """torchvision's: 8-bit pixels as shares of 255, channels first."""

    def __call__(self, image: Any) -> torch.Tensor:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)


class SqueezeExcite(torch.nn.Module):
    """timm's name, which is imported and not used."""


def modules(names: Mapping[str, Mapping[str, Any]]) -> dict[str, types.ModuleType]:
    """Return modules with these contents."""
    made = {}
    for name, content in names.items():
        made[name] = types.ModuleType(name)
        vars(made[name]).update(content)
    return made


def to_2tuple(value: Any) -> tuple[Any, Any]:
    """Return timm's pair of a number."""
    return value if isinstance(value, tuple) else (value, value)


STAND_INS = modules(
    {
        "torchvision": {},
        "torchvision.ops": {},
        "torchvision.ops.boxes": {"batched_nms": batched_nms, "box_area": box_area},
        "torchvision.transforms": {"Resize": Resize, "Normalize": Normalize, "ToTensor": ToTensor},
        "torchvision.transforms.functional": {
            "resize": lambda image, size: image.resize(size[::-1], Image.Resampling.BILINEAR),
            "to_pil_image": Image.fromarray,
        },
        "timm": {"create_model": None},
        "timm.models": {},
        "timm.models.layers": {
            "DropPath": type("DropPath", (torch.nn.Identity,), {}),
            "to_2tuple": to_2tuple,
            "trunc_normal_": torch.nn.init.trunc_normal_,
            "SqueezeExcite": SqueezeExcite,
        },
        "timm.models.registry": {"register_model": lambda function: function},
    }
)


@contextmanager
def stand_ins() -> Iterator[None]:
    """Have stand-ins for torchvision and timm, where they are not installed."""
    missing = {name for name in ("torchvision", "timm") if importlib.util.find_spec(name) is None}
    given = {name: module for name, module in STAND_INS.items() if name.partition(".")[0] in missing}
    sys.modules.update(given)
    try:
        yield
    finally:
        for name in given:
            del sys.modules[name]


with stand_ins():
    hq_modeling = importlib.import_module("segment_anything_hq.modeling.mask_decoder_hq")
    hq_transformer = importlib.import_module("segment_anything_hq.modeling.transformer")
    sam2_decoder = importlib.import_module("sam2.modeling.sam.mask_decoder")
    sam2_prompts = importlib.import_module("sam2.modeling.sam.prompt_encoder")
    sam2_transformer = importlib.import_module("sam2.modeling.sam.transformer")
    modeling = importlib.import_module("segment_anything_hq.modeling")


class HqDecoder(torch.nn.Module):
    """SAM-HQ's prompt encoder and mask decoder, its tensors named as in its checkpoints."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        self.prompt_encoder = modeling.PromptEncoder(
            embed_dim=config.width,
            image_embedding_size=config.grid_size,
            input_image_size=config.image_size,
            mask_in_chans=config.mask_channels,
        )
        self.mask_decoder = hq_modeling.MaskDecoderHQ(
            transformer_dim=config.width,
            transformer=hq_transformer.TwoWayTransformer(
                depth=config.depth,
                embedding_dim=config.width,
                num_heads=config.heads,
                mlp_dim=config.mlp_width,
                attention_downsample_rate=config.attention_downsample,
            ),
            num_multimask_outputs=config.multimask_outputs,
            iou_head_depth=config.iou_head_depth,
            iou_head_hidden_dim=config.iou_head_width,
            vit_dim=config.early_width,
        )

    def forward(self, features: Any, multimask: bool, hq_only: bool, **prompts: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the logits and scores that the package selects, of one image and prompts as for `Prompts.build`."""
        sparse, dense = embed(self.prompt_encoder, **prompts)
        logits, iou = self.mask_decoder(
            image_embeddings=channels_first(features.embedding),
            image_pe=self.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
            hq_token_only=hq_only,
            interm_embeddings=[as_float(features.early)[None]],
        )
        return logits.numpy(), iou.numpy()


class Sam2Decoder(torch.nn.Module):
    """SAM 2's prompt encoder and mask decoder, its tensors named as in its checkpoints."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        self.config = config
        self.sam_prompt_encoder = sam2_prompts.PromptEncoder(
            embed_dim=config.width,
            image_embedding_size=config.grid_size,
            input_image_size=config.image_size,
            mask_in_chans=config.mask_channels,
        )
        self.sam_mask_decoder = sam2_decoder.MaskDecoder(
            transformer_dim=config.width,
            transformer=sam2_transformer.TwoWayTransformer(
                depth=config.depth,
                embedding_dim=config.width,
                num_heads=config.heads,
                mlp_dim=config.mlp_width,
                attention_downsample_rate=config.attention_downsample,
            ),
            num_multimask_outputs=config.multimask_outputs,
            iou_head_depth=config.iou_head_depth,
            iou_head_hidden_dim=config.iou_head_width,
            use_high_res_features=config.high_resolution,
            iou_prediction_use_sigmoid=config.iou_sigmoid,
            pred_obj_scores=True,
            pred_obj_scores_mlp=True,
            use_multimask_token_for_obj_ptr=True,
            dynamic_multimask_via_stability=True,
        )
        self.no_mem_embed = torch.nn.Parameter(torch.randn(1, 1, config.width))

    def forward(
        self, features: Any, multimask: bool | None, points: Any = None, labels: Any = None, **prompts: Any
    ) -> tuple[np.ndarray, ...]:
        """Return logits, scores and object scores of one image and prompts as for `Prompts.build`, boxes as points.

        All masks, or where `multimask` is not None those that the package selects.
        """
        if (boxes := prompts.pop("boxes", None)) is not None:
            corners, corner_labels = np.reshape(boxes, (len(boxes), 2, 2)), np.tile([2, 3], (len(boxes), 1))
            points = corners if points is None else np.concatenate([corners, points], 1)
            labels = corner_labels if labels is None else np.concatenate([corner_labels, labels], 1)
        sparse, dense = embed(self.sam_prompt_encoder, points, labels, **prompts)
        inputs = {
            "image_embeddings": channels_first(features.embedding if self.config.high_resolution else features),
            "image_pe": self.sam_prompt_encoder.get_dense_pe(),
            "sparse_prompt_embeddings": sparse,
            "dense_prompt_embeddings": dense,
            "repeat_image": True,
            "high_res_features": [channels_first(features.stride_4), channels_first(features.stride_8)]
            if self.config.high_resolution
            else None,
        }
        if multimask is None:
            logits, iou, _, object_score = self.sam_mask_decoder.predict_masks(**inputs)
        else:
            logits, iou, _, object_score = self.sam_mask_decoder(multimask_output=multimask, **inputs)
        return logits.numpy(), iou.numpy(), object_score[:, 0].numpy()


def embed(
    encoder: torch.nn.Module, points: Any = None, labels: Any = None, boxes: Any = None, masks: Any = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sparse and dense embeddings of prompts, given as for `Prompts.build`."""
    return encoder(
        points=None if points is None else (as_float(points), as_float(labels)),
        boxes=None if boxes is None else as_float(boxes),
        masks=None if masks is None else as_float(masks)[:, None],
    )


def channels_first(value: Any) -> torch.Tensor:
    """Return a map [h, w, c] as PyTorch has it, for one image."""
    return as_float(value).permute(2, 0, 1)[None]


def random_relative(kind: type[torch.nn.Module], config: SamConfig, seed: int = 0) -> Any:
    """Return a decoder with random weights, with norm scales and biases that are no ones and zeros."""
    torch.manual_seed(seed)
    decoder = kind(config).eval().requires_grad_(False)
    randomise_norms(decoder)
    return decoder


def tensors_of(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """Return the state dict as numpy arrays."""
    return {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}
