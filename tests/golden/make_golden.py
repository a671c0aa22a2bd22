"""Write the frozen numbers of the official decoder, and of SAM-HQ's, SAM 2's and EfficientSAM's. Needs PyTorch and
their packages.

From the repository's root: `PYTHONPATH=tests python tests/golden/make_golden.py`
"""

import copy
import dataclasses
import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parity.kinds import KINDS, QUIET, prompts_in_pixels, quieten
from parity.official import OfficialDecoder, modeling, random_decoder, record
from parity.relatives import HqDecoder, Sam2Decoder, channels_first, random_relative, tensors_of
from parity.torch_efficient_sam import TorchEfficientSam
from random_model import FAMILIES

from sam_jax.config import SamConfig
from sam_jax.decoder.features import ImageFeatures

FOLDER = Path(__file__).parent
CONFIG = SamConfig(
    width=16, heads=2, mlp_width=40, iou_head_width=24, mask_channels=16, image_size=(48, 64), grid_size=(3, 4)
)
ORIGINAL_SIZES = ((37, 91), (100, 41), (9, 7), (64, 64))

RELATIVES = {name: dataclasses.replace(CONFIG, **FAMILIES[name]) for name in ("sam_hq", "sam2", "efficient_sam")}
FEW_KINDS = ("many mixed clicks", "box", "boxes and clicks", "masks and clicks", "nothing")
"""Enough for relatives, whose prompt encoder is SAM's but for one token."""

Arrays = dict[str, np.ndarray]


class Normal:
    """Standard normal float32 arrays of a given shape."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)

    def __call__(self, *shape: int) -> np.ndarray:
        return self.generator.standard_normal(shape, np.float32)


def prediction_arrays(decoder: OfficialDecoder) -> Arrays:
    """Every kind of prompt, and the logits and IoUs of all masks."""
    rng = Normal()
    embedding = rng(*CONFIG.grid_size, CONFIG.width)
    arrays = {"embedding": embedding}
    for kind in KINDS:
        given = prompts_in_pixels(kind, CONFIG, rng)
        logits, iou = decoder(embedding, **given)
        arrays |= {f"given/{kind}/{name}": value for name, value in given.items()}
        arrays |= {f"logits/{kind}": logits, f"iou/{kind}": iou}
    return arrays


def stage_arrays(decoder: OfficialDecoder, scale: float) -> Arrays:
    """Inputs, and what each part of the decoder makes of them, computed in float64."""
    rng, (h, w), c = Normal(), CONFIG.grid_size, CONFIG.width
    inputs = {"mask": 8 * rng(*CONFIG.mask_size) - 4, "image": rng(h, w, c), "sparse": rng(3, c), "dense": rng(h, w, c)}
    inputs = {name: np.float32(scale) * array for name, array in inputs.items()}
    inputs["position"] = decoder.prompt_encoder.get_dense_pe()[0].permute(1, 2, 0).numpy().copy()

    decoder = copy.deepcopy(decoder).double()
    maps = {name: torch.tensor(inputs[name]).double().permute(2, 0, 1)[None] for name in ("image", "position", "dense")}
    sparse, mask = (torch.tensor(inputs[name]).double()[None] for name in ("sparse", "mask"))
    results = []
    stages = record(decoder.mask_decoder, lambda: results.extend(run(decoder, maps, sparse)))
    stages |= record(decoder.prompt_encoder, lambda: decoder.prompt_encoder.mask_downscaling(mask[None]))
    stages |= {"logits": results[0][0].numpy(), "iou": results[1][0].numpy()}
    given = {f"inputs/{name}": array for name, array in inputs.items()}
    return given | {f"stages/{path}": array.astype(np.float32) for path, array in stages.items()}


def run(decoder: OfficialDecoder, maps: dict[str, torch.Tensor], sparse: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return decoder.mask_decoder.predict_masks(maps["image"], maps["position"], sparse, maps["dense"])


def mask_arrays() -> Arrays:
    """Low-res logits, and what `Sam.postprocess_masks` makes of them in float64 for several original sizes."""
    logits = 5 * Normal()(1, 16, 16)
    arrays = {"logits": logits}
    for height, width in ORIGINAL_SIZES:
        scale = 64 / max(height, width)
        input_size = int(height * scale + 0.5), int(width * scale + 0.5)
        sam = types.SimpleNamespace(image_encoder=types.SimpleNamespace(img_size=64))
        masks = modeling.Sam.postprocess_masks(sam, torch.tensor(logits).double()[None], input_size, (height, width))
        arrays[f"masks/{height}x{width}"] = masks[0].numpy().astype(np.float32)
    return arrays


def short(array: np.ndarray) -> np.ndarray:
    """Round to float16, which takes half of the room: weights and inputs are as random as before."""
    return array.astype(np.float16)


def random_short(kind: type[torch.nn.Module], config: SamConfig) -> tuple[Any, Arrays]:
    """Return a relative's decoder with random weights that fit float16, and the weights one behind the other."""
    decoder = random_relative(kind, config)
    weights = {name: short(tensor) for name, tensor in tensors_of(decoder).items()}
    decoder.load_state_dict({name: torch.tensor(tensor).float() for name, tensor in weights.items()})
    shapes = json.dumps({name: tensor.shape for name, tensor in weights.items()})
    flat = np.concatenate([tensor.reshape(-1) for tensor in weights.values()])
    return decoder, {"weights": flat, "shapes": np.frombuffer(shapes.encode(), np.uint8)}


def few_prompts(config: SamConfig, rng: Normal) -> dict[str, Any]:
    """Return the arguments of `Prompts.build` for each of `FEW_KINDS`."""
    prompts = {}
    for kind in FEW_KINDS:
        given = prompts_in_pixels(kind, config, rng)
        prompts[kind] = {name: short(value).astype(np.float32) for name, value in given.items()}
        prompts[kind] |= {"labels": given["labels"]} if "labels" in given else {}
    return prompts


def hq_arrays(config: SamConfig) -> Arrays:
    """Every selection that SAM-HQ's package makes: the HQ mask alone, with mask 0, with the best of the others."""
    decoder, arrays = random_short(HqDecoder, config)
    rng, (h, w) = Normal(), config.grid_size
    maps = {"embedding": short(rng(h, w, config.width)), "early": short(rng(h, w, config.early_width))}
    arrays |= {f"maps/{name}": value for name, value in maps.items()}
    features = ImageFeatures(**{name: value.astype(np.float32) for name, value in maps.items()})
    for kind, given in few_prompts(config, rng).items():
        arrays |= {f"given/{kind}/{name}": value for name, value in given.items()}
        for name, multimask, hq_only in (("hq", True, True), ("single", False, False), ("best", True, False)):
            logits, iou = decoder(features, multimask, hq_only, **given)
            arrays |= {f"{name}/{kind}": logits, f"{name} iou/{kind}": iou}
    return arrays


def sam2_arrays(config: SamConfig) -> Arrays:
    """SAM 2's maps of an image from its encoder's levels; all masks, scores and object scores; the single masks."""
    decoder, arrays = random_short(Sam2Decoder, config)
    rng, (h, w), mask_decoder = Normal(), config.grid_size, decoder.sam_mask_decoder
    levels = [short(rng(h << i, w << i, config.width)) for i in range(3)]
    inputs = [channels_first(level.astype(np.float32)) for level in levels]
    made = {
        "embedding": inputs[0] + decoder.no_mem_embed.reshape(1, -1, 1, 1),
        "stride_8": mask_decoder.conv_s1(inputs[1]),
        "stride_4": mask_decoder.conv_s0(inputs[2]),
    }
    maps = {name: value[0].permute(1, 2, 0).numpy().copy() for name, value in made.items()}
    arrays |= {f"levels/{i}": level for i, level in enumerate(levels)}
    arrays |= {f"maps/{name}": value for name, value in maps.items()}
    for kind, given in few_prompts(config, rng).items():
        arrays |= {f"given/{kind}/{name}": value for name, value in given.items()}
        logits, iou, object_score = decoder(ImageFeatures(**maps), None, **given)
        _, single_iou, _ = decoder(ImageFeatures(**maps), False, **given)
        arrays |= {f"logits/{kind}": logits, f"iou/{kind}": iou, f"object score/{kind}": object_score}
        arrays |= {f"single iou/{kind}": single_iou}
    return arrays


def efficient_sam_arrays(config: SamConfig) -> Arrays:
    """All masks and scores, for prompts without masks; a box is two points. And masks at an image's size in float64."""
    decoder, arrays = random_short(TorchEfficientSam, config)
    rng = Normal()
    embedding = short(rng(*config.grid_size, config.width))
    arrays["maps/embedding"] = embedding
    image = channels_first(embedding.astype(np.float32))[0]
    for kind, given in few_prompts(config, rng).items():
        if "masks" in given or not given:
            continue
        arrays |= {f"given/{kind}/{name}": value for name, value in given.items()}
        points, labels = ([given[name]] if name in given else [] for name in ("points", "labels"))
        if "boxes" in given:
            corners = given["boxes"].reshape(-1, 2, 2)
            points, labels = [*points, corners], [*labels, np.tile([2, 3], (len(corners), 1))]
        logits, iou = decoder(image, np.concatenate(points, 1), np.concatenate(labels, 1))
        arrays |= {f"logits/{kind}": logits.numpy(), f"iou/{kind}": iou.numpy()}
    for height, width in ORIGINAL_SIZES[::2]:
        masks = decoder.postprocess(torch.tensor(arrays["logits/box"]).double(), (height, width))
        arrays[f"masks/{height}x{width}"] = masks[0, :1].numpy().astype(np.float32)
    return arrays


def golden_files() -> dict[str, Arrays]:
    """Return the name and the arrays of every file."""
    decoder = random_decoder(CONFIG)
    quiet = copy.deepcopy(decoder)
    quiet.set_tensors(quieten(decoder.tensors()))
    return {
        "weights": decoder.tensors(),
        "predictions": prediction_arrays(decoder),
        "stages": stage_arrays(decoder, 1),
        "low_variance": stage_arrays(quiet, QUIET),
        "masks": mask_arrays(),
        "sam_hq": hq_arrays(RELATIVES["sam_hq"]),
        "sam2": sam2_arrays(RELATIVES["sam2"]),
        "efficient_sam": efficient_sam_arrays(RELATIVES["efficient_sam"]),
    }


if __name__ == "__main__":
    (FOLDER / "config.json").write_text(CONFIG.to_json() + "\n")
    for name, arrays in golden_files().items():
        path = FOLDER / f"{name}.npz"
        np.savez_compressed(path, **arrays)
        print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size / 1000:.0f} kB")
