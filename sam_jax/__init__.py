"""Segment Anything's promptable decoder as pure JAX functions.

Names are imported when they are first used, so that `import sam_jax` costs nothing and `sam_jax.convert` works without
JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sam_jax import convert
    from sam_jax.automatic.config import AutomaticConfig
    from sam_jax.automatic.generate import GeneratedMasks, generate_masks
    from sam_jax.automatic.labels import label_map
    from sam_jax.batch.compiled import compile
    from sam_jax.batch.decode import Sizes
    from sam_jax.batch.folder import predict_folder
    from sam_jax.batch.interactive import click, start_clicks
    from sam_jax.batch.predict import predict_masks
    from sam_jax.batch.select import best_masks, mask_boxes, mask_nms, select_masks, take_masks
    from sam_jax.batch.sharding import make_mesh, replicate, shard_inputs
    from sam_jax.config import SamConfig
    from sam_jax.decoder.features import ImageFeatures
    from sam_jax.decoder.model import MaskPrediction, Sam
    from sam_jax.decoder.stability import stability_score
    from sam_jax.errors import CheckpointError
    from sam_jax.fast.low_rank import prepare_image
    from sam_jax.files.checkpoints import load, load_encoder, save
    from sam_jax.files.embeddings import EmbeddingStore
    from sam_jax.files.exported import export_decoder
    from sam_jax.images.full_size import binary_masks, resize_masks, rle_masks
    from sam_jax.images.pixels import EncodedImage, encode_image, predict_batch, predict_image
    from sam_jax.images.resize import input_size_for, mask_to_prompt, to_input_frame, to_original_image
    from sam_jax.predictor import Predictor
    from sam_jax.prompts import Prompts

_HOMES = {
    "convert": "",
    "AutomaticConfig": "automatic.config",
    "GeneratedMasks": "automatic.generate",
    "generate_masks": "automatic.generate",
    "label_map": "automatic.labels",
    "load": "files.checkpoints",
    "load_encoder": "files.checkpoints",
    "save": "files.checkpoints",
    "SamConfig": "config",
    "EmbeddingStore": "files.embeddings",
    "CheckpointError": "errors",
    "compile": "batch.compiled",
    "export_decoder": "files.exported",
    "binary_masks": "images.full_size",
    "rle_masks": "images.full_size",
    "click": "batch.interactive",
    "start_clicks": "batch.interactive",
    "ImageFeatures": "decoder.features",
    "MaskPrediction": "decoder.model",
    "Sam": "decoder.model",
    "EncodedImage": "images.pixels",
    "encode_image": "images.pixels",
    "predict_batch": "images.pixels",
    "predict_image": "images.pixels",
    "Sizes": "batch.decode",
    "predict_masks": "batch.predict",
    "Predictor": "predictor",
    "prepare_image": "fast.low_rank",
    "Prompts": "prompts",
    "input_size_for": "images.resize",
    "mask_to_prompt": "images.resize",
    "resize_masks": "images.full_size",
    "to_input_frame": "images.resize",
    "to_original_image": "images.resize",
    "best_masks": "batch.select",
    "mask_boxes": "batch.select",
    "mask_nms": "batch.select",
    "select_masks": "batch.select",
    "stability_score": "decoder.stability",
    "take_masks": "batch.select",
    "make_mesh": "batch.sharding",
    "replicate": "batch.sharding",
    "shard_inputs": "batch.sharding",
    "predict_folder": "batch.folder",
}

__all__ = [
    "AutomaticConfig",
    "CheckpointError",
    "EmbeddingStore",
    "EncodedImage",
    "GeneratedMasks",
    "ImageFeatures",
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
    "generate_masks",
    "input_size_for",
    "label_map",
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
