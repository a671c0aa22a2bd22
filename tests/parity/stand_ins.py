"""What the reference packages use of torchvision and timm, which do not go with PyTorch's build for CPUs.

The stand-ins are there while a package is imported, and for it alone.
"""

import functools
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional


def box_area(boxes: torch.Tensor) -> torch.Tensor:
    """Return width times height of boxes (x0, y0, x1, y1)."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def batched_nms(boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Do what torchvision's does on a CPU for boxes of one category: scores are sorted stably, an IoU of NaN (two boxes
    without an area) suppresses nothing, nor does one at the threshold.
    """
    assert not idxs.any()
    order = torch.sort(scores, descending=True, stable=True).indices
    area, suppressed, kept = box_area(boxes), torch.zeros(len(boxes), dtype=torch.bool), []
    for position, i in enumerate(order):
        if suppressed[i]:
            continue
        kept.append(int(i))
        others = order[position + 1 :]
        low = torch.maximum(boxes[i, :2], boxes[others, :2])
        high = torch.minimum(boxes[i, 2:], boxes[others, 2:])
        shared = (high - low).clamp(min=0).prod(-1)
        suppressed[others] |= shared / (area[i] + area[others] - shared) > iou_threshold
    return torch.tensor(kept, dtype=torch.int64)


class Compose:
    """torchvision's: one thing after the other."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms = transforms

    def __call__(self, image: Any) -> Any:
        return functools.reduce(lambda x, transform: transform(x), self.transforms, image)


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
        "torchvision.transforms": {"Compose": Compose, "Resize": Resize, "Normalize": Normalize, "ToTensor": ToTensor},
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


def import_package(name: str) -> types.ModuleType:
    """Import a module of a package that asks for torchvision or timm."""
    missing = {name for name in ("torchvision", "timm") if importlib.util.find_spec(name) is None}
    given = {name: module for name, module in STAND_INS.items() if name.partition(".")[0] in missing}
    sys.modules.update(given)
    try:
        return importlib.import_module(name)
    finally:
        for part in given:
            del sys.modules[part]
