"""The decoders of SAM 2 (`rf-sam-2`) and of SAM-HQ (`segment-anything-hq`) in PyTorch, with random weights."""

from typing import Any

import numpy as np
import torch
from parity.official import as_float, embed, mask_decoder, prompt_encoder, randomise_norms
from parity.stand_ins import import_package

from sam_jax.config import SamConfig

hq_modeling = import_package("segment_anything_hq.modeling.mask_decoder_hq")
hq_transformer = import_package("segment_anything_hq.modeling.transformer")
modeling = import_package("segment_anything_hq.modeling")
sam2_decoder = import_package("sam2.modeling.sam.mask_decoder")
sam2_prompts = import_package("sam2.modeling.sam.prompt_encoder")
sam2_transformer = import_package("sam2.modeling.sam.transformer")


class HqDecoder(torch.nn.Module):
    """SAM-HQ's prompt encoder and mask decoder, its tensors named as in its checkpoints."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        self.prompt_encoder = prompt_encoder(modeling.PromptEncoder, config)
        self.mask_decoder = mask_decoder(
            hq_modeling.MaskDecoderHQ, hq_transformer.TwoWayTransformer, config, vit_dim=config.early_width
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
        self.sam_prompt_encoder = prompt_encoder(sam2_prompts.PromptEncoder, config)
        self.sam_mask_decoder = mask_decoder(
            sam2_decoder.MaskDecoder,
            sam2_transformer.TwoWayTransformer,
            config,
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
