"""Write the frozen numbers of the official decoder. Needs PyTorch.

From the repository's root: `PYTHONPATH=tests python tests/golden/make_golden.py`
"""

import copy
import types
from pathlib import Path

import numpy as np
import torch
from parity.kinds import KINDS, QUIET, prompts_in_pixels, quieten
from parity.official import OfficialDecoder, modeling, random_decoder, record

from sam_jax.config import SamConfig

FOLDER = Path(__file__).parent
CONFIG = SamConfig(
    width=16, heads=2, mlp_width=40, iou_head_width=24, mask_channels=16, image_size=(48, 64), grid_size=(3, 4)
)
ORIGINAL_SIZES = ((37, 91), (100, 41), (9, 7), (64, 64))

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
    }


if __name__ == "__main__":
    (FOLDER / "config.json").write_text(CONFIG.to_json() + "\n")
    for name, arrays in golden_files().items():
        path = FOLDER / f"{name}.npz"
        np.savez_compressed(path, **arrays)
        print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size / 1000:.0f} kB")
