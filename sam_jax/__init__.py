"""Segment Anything's promptable decoder as pure JAX functions.

Names are imported when they are first used, so that `import sam_jax` costs nothing and `sam_jax.convert` works without
JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sam_jax import convert
    from sam_jax.checkpoints import load, load_encoder, save
    from sam_jax.compiled import compile
    from sam_jax.config import SamConfig
    from sam_jax.embeddings import EmbeddingStore
    from sam_jax.errors import CheckpointError
    from sam_jax.exported import export_decoder
    from sam_jax.folder import predict_folder
    from sam_jax.full_size import binary_masks, rle_masks
    from sam_jax.interactive import click, start_clicks
    from sam_jax.low_rank import prepare_image
    from sam_jax.model import MaskPrediction, Sam
    from sam_jax.pixels import EncodedImage, encode_image, predict_batch, predict_image
    from sam_jax.predict import Sizes, predict_masks
    from sam_jax.predictor import Predictor
    from sam_jax.prompts import Prompts
    from sam_jax.resize import input_size_for, mask_to_prompt, resize_masks, to_input_frame, to_original_image
    from sam_jax.select import best_masks, mask_boxes, mask_nms, select_masks, stability_score, take_masks
    from sam_jax.sharding import make_mesh, replicate, shard_inputs

_HOMES = {
    "convert": "",
    "load": "checkpoints",
    "load_encoder": "checkpoints",
    "save": "checkpoints",
    "SamConfig": "config",
    "EmbeddingStore": "embeddings",
    "CheckpointError": "errors",
    "compile": "compiled",
    "export_decoder": "exported",
    "binary_masks": "full_size",
    "rle_masks": "full_size",
    "click": "interactive",
    "start_clicks": "interactive",
    "MaskPrediction": "model",
    "Sam": "model",
    "EncodedImage": "pixels",
    "encode_image": "pixels",
    "predict_batch": "pixels",
    "predict_image": "pixels",
    "Sizes": "predict",
    "predict_masks": "predict",
    "Predictor": "predictor",
    "prepare_image": "low_rank",
    "Prompts": "prompts",
    "input_size_for": "resize",
    "mask_to_prompt": "resize",
    "resize_masks": "resize",
    "to_input_frame": "resize",
    "to_original_image": "resize",
    "best_masks": "select",
    "mask_boxes": "select",
    "mask_nms": "select",
    "select_masks": "select",
    "stability_score": "select",
    "take_masks": "select",
    "make_mesh": "sharding",
    "replicate": "sharding",
    "shard_inputs": "sharding",
    "predict_folder": "folder",
}

__all__ = [
    "CheckpointError",
    "EmbeddingStore",
    "EncodedImage",
    "MaskPrediction",
    "Predictor",
    "Prompts",
    "Sam",
    "SamConfig",
    "Sizes",
    "best_masks",
    "binary_masks",
    "click",
    "compile",
    "convert",
    "encode_image",
    "export_decoder",
    "input_size_for",
    "load",
    "load_encoder",
    "make_mesh",
    "mask_boxes",
    "mask_nms",
    "mask_to_prompt",
    "predict_batch",
    "predict_folder",
    "predict_image",
    "predict_masks",
    "prepare_image",
    "replicate",
    "resize_masks",
    "rle_masks",
    "save",
    "select_masks",
    "shard_inputs",
    "stability_score",
    "start_clicks",
    "take_masks",
    "to_input_frame",
    "to_original_image",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sam_jax' has no attribute {name!r}")
    home = _HOMES[name]
    if not home:
        return importlib.import_module(f"sam_jax.{name}")
    value = getattr(importlib.import_module(f"sam_jax.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
