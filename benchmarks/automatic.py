"""Every object of an image: ours against the official generator, the same random weights, in one run.

    PYTHONPATH=tests python -m benchmarks.automatic

prints JSON: seconds for an image with its embedding given and from its pixels, the ratios, how many records both sides
have and how many are the same, images a second where each has a size of its own, and the peak memory of each side in a
process of its own. Scores of random weights mean nothing, and their masks all have the box of the image. So thresholds
are set by shares: a third of the masks passes the predicted IoU, a tenth of these the stability score, and the boxes'
overlap removes none. That leaves about 100 masks of 1,024 points, as in a photograph.
"""

import dataclasses
import json
import re
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
import tyro
from parity.encoders import official_vit, randomise, vit_variables
from parity.official import modeling, random_decoder, segment_anything

import sam_jax
from sam_jax.commands.bench import machine
from sam_jax.convert.state_dict import from_torch
from sam_jax.encoders.config import VIT_B, VIT_TINY, ViTConfig
from sam_jax.encoders.vit import ImageEncoder
from sam_jax.images.pixels import EncodedImage
from sam_jax.images.resize import input_size_for

QUICK = dataclasses.replace(VIT_TINY, image_size=(1024, 1024), out_width=256, depth=1, global_blocks=(0,))
ENCODERS = {"vit_b": VIT_B, "tiny": QUICK}
MB = 2**20


class Pair(NamedTuple):
    """The same model twice."""

    official: Any
    ours: sam_jax.Predictor


def make_pair(config: ViTConfig) -> Pair:
    """Return both sides with the same random weights."""
    decoder, encoder = random_decoder(sam_jax.SamConfig()), randomise(official_vit(config))
    sam = modeling.Sam(encoder, decoder.prompt_encoder, decoder.mask_decoder).eval()
    converted = from_torch({name: x.numpy() for name, x in decoder.state_dict().items()})
    model = sam_jax.Sam(converted.config)
    variables, encoder_variables = jax.device_put((converted.variables, vit_variables(config, encoder)))
    return Pair(sam, sam_jax.Predictor(model, variables, ImageEncoder(config), encoder_variables))


def picture(size: tuple[int, int]) -> np.ndarray:
    """Return smooth random colours."""
    coarse = np.random.default_rng(size[0]).uniform(0, 255, (9, 13, 3))
    return np.asarray(jax.image.resize(coarse, (*size, 3), "cubic")).clip(0, 255).astype(np.uint8)


def chosen_settings(pair: Pair, image: EncodedImage, side: int) -> dict[str, Any]:
    """Return settings by which a third of the masks passes the predicted IoU, and a tenth of these the stability."""
    settings: dict[str, Any] = {"points_per_side": side, "stability_score_offset": 0.05, "box_nms_thresh": 1.0}
    loose = settings | {"points_per_side": 8, "pred_iou_thresh": -1.0}
    records = pair.ours.generate(image, **loose, stability_score_thresh=-1.0, output_mode="coco_rle")
    iou = float(np.quantile([record["predicted_iou"] for record in records], 2 / 3))
    sure = [record["stability_score"] for record in records if record["predicted_iou"] > iou]
    return settings | {"pred_iou_thresh": iou, "stability_score_thresh": float(np.quantile(sure, 0.9))}


def with_embedding(sam: Any, settings: dict[str, Any], embedding: np.ndarray) -> Any:
    """Return the official generator for an image that is encoded already."""
    generator = segment_anything.SamAutomaticMaskGenerator(sam, **settings)
    predictor = generator.predictor
    given = torch.from_numpy(embedding).permute(2, 0, 1)[None]

    def set_torch_image(transformed: torch.Tensor, original_size: tuple[int, int]) -> None:
        predictor.reset_image()
        predictor.original_size, predictor.input_size = original_size, tuple(transformed.shape[-2:])
        predictor.features, predictor.is_image_set = given, True

    predictor.set_torch_image = set_torch_image
    return generator


def peak(side: str, size: tuple[int, int], settings: dict[str, Any], embedding: np.ndarray) -> float:
    """Return the peak MB of a process that generates once, less that of one that is ready to."""
    pair = make_pair(QUICK)
    image = EncodedImage(embedding, input_size_for(size), size)
    before = peak_memory()
    if side == "ours":
        pair.ours.generate(image, **settings)
    else:
        with_embedding(pair.official, settings, embedding).generate(picture(size))
    return peak_memory() - before


def peak_memory() -> float:
    """Return the peak MB of this process alone: `getrusage` begins with its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / MB


def main(
    size: tuple[int, int] = (1200, 1800),
    points_per_side: int = 32,
    rounds: int = 3,
    encoder: str = "vit_b",
    sizes: int = 100,
    memory: bool = True,
) -> None:
    """Compare both sides.

    Args:
      size: height and width of the image.
      points_per_side: of the grid.
      rounds: turns of both.
      encoder: vit_b, or tiny to try the script.
      sizes: images of sizes of their own that we generate the masks of, with a grid of 8 x 8.
      memory: whether to measure the peaks of both.
    """
    pair, pixels = make_pair(ENCODERS[encoder]), picture(size)
    image = pair.ours.set_image(pixels)
    embedding = np.array(image.embedding)
    settings = chosen_settings(pair, image, points_per_side)
    official = segment_anything.SamAutomaticMaskGenerator(pair.official, **settings)
    given = with_embedding(pair.official, settings, embedding)
    sides: dict[str, Callable[[], Any]] = {
        "ours, embedding given": lambda: pair.ours.generate(image, **settings),
        "official, embedding given": lambda: given.generate(pixels),
        "ours, from pixels": lambda: pair.ours.generate(pixels, **settings),
        "official, from pixels": lambda: official.generate(pixels),
    }
    sides["ours, from pixels"]()  # compiles
    turns: dict[str, list[float]] = {name: [] for name in sides}
    records: dict[str, list[dict[str, Any]]] = {}
    for _ in range(rounds):
        for name, run in sides.items():
            begin = time.perf_counter()
            records[name] = run()
            turns[name].append(time.perf_counter() - begin)
    ours, theirs = records["ours, embedding given"], records["official, embedding given"]
    medians = {name: statistics.median(times) for name, times in turns.items()}
    same = places(ours) & places(theirs)
    figures: dict[str, Any] = {
        "machine": machine(),
        "seconds": {name: round(value, 2) for name, value in medians.items()},
        "ratio, embedding given": round(medians["official, embedding given"] / medians["ours, embedding given"], 2),
        "ratio, from pixels": round(medians["official, from pixels"] / medians["ours, from pixels"], 2),
        "records": {"ours": len(ours), "official": len(theirs), "same": len(same)},
        "settings": settings,
    }
    if memory:
        figures["peak MB beyond a ready process"] = {}
        for side in ("ours", "official"):
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                megabytes = pool.submit(peak, side, size, settings, embedding).result()
            figures["peak MB beyond a ready process"][side] = round(megabytes)
    if sizes:
        figures["images a second, embeddings given, each of its own size, 8 x 8 points"] = round(
            over_sizes(pair, image, settings, sizes), 2
        )
    print(json.dumps(figures, indent=2))


def places(records: list[dict[str, Any]]) -> set[Any]:
    """Return the box and the point of each record."""
    return {(tuple(record["bbox"]), tuple(record["point_coords"][0])) for record in records}


def over_sizes(pair: Pair, image: EncodedImage, settings: dict[str, Any], number: int) -> float:
    """Return how many images a second are done whose sizes are all different."""
    rng = np.random.default_rng(0)
    several = [
        EncodedImage(image.embedding, input_size_for(size), size)
        for size in rng.integers(300, 1500, (number, 2)).tolist()
    ]
    settings = settings | {"points_per_side": 8, "output_mode": "coco_rle"}
    pair.ours.generate(several[0], **settings)
    begin = time.perf_counter()
    for one in several:
        pair.ours.generate(one, **settings)
    return number / (time.perf_counter() - begin)


if __name__ == "__main__":
    tyro.cli(main)
