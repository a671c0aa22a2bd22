"""Settings of automatic masks: names and defaults of the official generator."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from sam_jax.config import SamConfig
from sam_jax.errors import describe

OutputMode = Literal["binary_mask", "uncompressed_rle", "coco_rle"]

MOST_CROP_LAYERS = 4
"""More would be crops of a 32nd of a side: 5,461 encodings of one image."""


@dataclasses.dataclass(frozen=True)
class AutomaticConfig:
    """How masks are found and filtered (`SamAutomaticMaskGenerator` in `segment_anything/automatic_mask_generator.py`).

    Attributes:
      points_per_side: a grid of so many points along each side; None where `point_grids` is given.
      points_per_batch: points that are decoded before their masks are filtered, a bound on memory.
      pred_iou_thresh: a mask is kept if its predicted IoU is above; 0 keeps all.
      stability_score_thresh: a mask is kept if its stability score is not below; 0 keeps all.
      stability_score_offset: how far the stability score moves the logits' threshold up and down.
      box_nms_thresh: of two masks of a crop whose boxes have a larger IoU, the one of the higher score is kept.
      crop_n_layers: layers of crops, of which layer i has 2^i x 2^i crops, beside the image as a whole.
      crop_nms_thresh: of two masks whose boxes have a larger IoU, the one of the smaller crop is kept.
      crop_overlap_ratio: overlap of the first layer's crops, as a share of the image's shorter side.
      tile: instead of layers, crops are tiles of so many pixels along each side, which overlap by a quarter, beside the
        image as a whole; None for no tiles.
      crop_n_points_downscale_factor: layer i has a grid of `points_per_side` / factor^i points along each side.
      point_grids: for the image and each layer of crops an array [point, 2] of (x, y) from 0 to 1, in place of grids.
      min_mask_region_area: holes and islands of fewer pixels are filled and removed.
      output_mode: what `segmentation` is: an array of bools, or COCO run lengths, as numbers or compressed.
      max_masks: return at most so many, the first ones; None for all.
      use_m2m: ask for each mask once more, with its point and its low-res logits as the mask prompt, and filter the
        answers instead (`SAM2AutomaticMaskGenerator` in `sam2/automatic_mask_generator.py`; its `pred_iou_thresh` is
        0.8 by default).
    """

    points_per_side: int | None = 32
    points_per_batch: int = 64
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    tile: int | None = None
    point_grids: Sequence[Any] | None = None
    min_mask_region_area: int = 0
    output_mode: OutputMode = "binary_mask"
    max_masks: int | None = None
    use_m2m: bool = False

    def __post_init__(self) -> None:
        """Raise a ValueError for settings that mean nothing."""
        if (self.points_per_side is None) == (self.point_grids is None):
            raise ValueError("Exactly one of points_per_side and point_grids must be given; set the other to None.")
        for name, least in (
            ("points_per_batch", 1),
            ("crop_n_points_downscale_factor", 1),
            ("min_mask_region_area", 0),
        ):
            self._check(name, getattr(self, name), int, least)
        for name in ("points_per_side", "max_masks", "tile"):
            if getattr(self, name) is not None:
                self._check(name, getattr(self, name), int, 1)
        self._check("crop_n_layers", self.crop_n_layers, int, 0, MOST_CROP_LAYERS)
        if self.tile is not None and self.crop_n_layers:
            raise ValueError(f"Crops are of tile or of crop_n_layers, got {self.tile} and {self.crop_n_layers}.")
        for name in ("pred_iou_thresh", "stability_score_thresh", "box_nms_thresh", "crop_nms_thresh"):
            self._check(name, getattr(self, name), (int, float), -np.inf)
        self._check("stability_score_offset", self.stability_score_offset, (int, float), 0)
        self._check("crop_overlap_ratio", self.crop_overlap_ratio, (int, float), 0, 1)
        if type(self.use_m2m) is not bool:
            raise ValueError(f"use_m2m must be true or false, got {describe(self.use_m2m)}.")
        if self.output_mode not in get_args(OutputMode):
            raise ValueError(
                f"output_mode must be one of {', '.join(get_args(OutputMode))}, got {describe(self.output_mode)}."
            )
        if self.points_per_side is not None:
            last = self.points_per_side / self.crop_n_points_downscale_factor**self.layers
            if last < 1:
                raise ValueError(
                    f"points_per_side {self.points_per_side} leaves no point for the last layer of crops: each of "
                    f"{self.layers} divides it by {self.crop_n_points_downscale_factor}."
                )
        if self.point_grids is not None:
            self._check_grids(self.point_grids)

    @property
    def layers(self) -> int:
        """Layers of crops beside the image as a whole."""
        return self.crop_n_layers if self.tile is None else 1

    @staticmethod
    def _check(name: str, value: Any, kind: Any, least: float, most: float = np.inf) -> None:
        whole = "a whole number" if kind is int else "a number"
        bounds = f" of at least {least}" if np.isfinite(least) else ""
        bounds += f" and at most {most}" if np.isfinite(most) else ""
        if isinstance(value, bool) or not isinstance(value, kind) or not least <= value <= most:
            raise ValueError(f"{name} must be {whole}{bounds}, got {describe(value)}.")

    def _check_grids(self, grids: Sequence[Any]) -> None:
        if len(grids) != self.layers + 1:
            raise ValueError(
                f"point_grids must have a grid for the image and one for each of {self.layers} layers of crops, "
                f"got {len(grids)}."
            )
        for grid in map(np.asarray, grids):
            if grid.ndim != 2 or grid.shape[1] != 2 or not ((grid >= 0) & (grid <= 1)).all():
                raise ValueError(f"point_grids must be arrays [point, 2] of (x, y) from 0 to 1, got {describe(grid)}.")


def check_decoder(config: SamConfig, settings: AutomaticConfig) -> None:
    """Raise a ValueError for settings that ask a decoder for what it cannot do."""
    if settings.use_m2m and config.efficient_sam:
        raise ValueError("use_m2m hands masks back as prompts, and EfficientSAM takes no mask prompts.")
