"""The decoders of SAM 2 (`rf-sam-2`) and of SAM-HQ (`segment-anything-hq`) in PyTorch, with random weights."""

from typing import Any

import numpy as np
import torch
from parity.official import as_float, randomise_norms
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
