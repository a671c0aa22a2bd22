"""Prompt sets per second of the ways to decode, beside PyTorch and ONNX Runtime.

    PYTHONPATH=tests python -m benchmarks.decoder --rounds 5

gives all sides the same full-size decoder with random weights, runs them in turns, and prints JSON: medians of prompt
sets per second; how many times ONNX Runtime's and PyTorch's they are, medians over rounds of the ratio in a round, for
others may use the machine; and the largest difference of the logits from PyTorch's, as a share of the largest logit.
Compilation and a first run are not in the figures.

PyTorch is the official package, eager; ONNX Runtime has its export, without the resize to the original image. Both get
as many prompt sets per call as suits them best. A new image is an embedding, so that what depends on the image alone is
in the figures; a prepared one has been through `prepare_image`.
"""

import contextlib
import dataclasses
import importlib
import io
import json
import os
import platform
import statistics
import tempfile
import time
import types
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import onnxruntime
import torch
import tyro
from parity.official import OfficialDecoder, random_decoder

from sam_jax import Prompts, Sam
from sam_jax.config import SamConfig
from sam_jax.convert.state_dict import from_torch
from sam_jax.low_rank import prepare_image
from sam_jax.predict import choose_path, decode, default_chunk

Run = Callable[[], Any]
AT_ONCE = (1, 4, 16, 64)


@dataclasses.dataclass
class Case:
    """Prompt sets on one image, as arrays.

    Attributes:
      sets: how many prompt sets.
      clicks: clicks in each.
      box: whether each has a box instead of clicks.
      mask: whether each has a mask prompt, too.
      prepared: whether the image is prepared.
    """

    sets: int
    clicks: int = 1
    box: bool = False
    mask: bool = False
    prepared: bool = False

    def prompts(self) -> dict[str, Any]:
        """Return the arguments of `Prompts.build`."""
        rng = np.random.default_rng(0)
        given = {}
        if self.box:
            corners = rng.uniform(0, 512, (self.sets, 2))
            given["boxes"] = np.concatenate([corners, corners + rng.uniform(50, 500, (self.sets, 2))], -1)
        else:
            given["points"] = rng.uniform(0, 1024, (self.sets, self.clicks, 2))
            given["labels"] = rng.integers(0, 2, (self.sets, self.clicks))
        if self.mask:
            given["masks"] = rng.normal(0, 5, (self.sets, 256, 256))
        return {name: value.astype(np.float32) for name, value in given.items()}


CASES = {
    "1 click, new": Case(1),
    "1 click, prepared": Case(1, prepared=True),
    "16 x 1 click": Case(16),
    "64 x 1 click": Case(64),
    "256 x 1 click": Case(256),
    "1024 x 1 click": Case(1024),
    "16 clicks, new": Case(1, clicks=16),
    "16 clicks, prepared": Case(1, clicks=16, prepared=True),
    "16 x 16 clicks": Case(16, clicks=16),
    "box, new": Case(1, box=True),
    "box, prepared": Case(1, box=True, prepared=True),
    "click and mask, new": Case(1, mask=True),
    "click and mask, prepared": Case(1, mask=True, prepared=True),
    "16 x click and mask": Case(16, mask=True),
}


def pytorch(official: OfficialDecoder, embedding: np.ndarray, given: dict[str, Any], at_once: int) -> Run:
    sets = len(next(iter(given.values())))

    @torch.inference_mode()
    def run() -> np.ndarray:
        parts = [{name: x[i : i + at_once] for name, x in given.items()} for i in range(0, sets, at_once)]
        return np.concatenate([official(embedding, **part)[0] for part in parts])

    return run


class Exportable(torch.nn.Module):
    """The official wrapper for export up to the low-res logits, with or without mask prompts."""

    def __init__(self, official: OfficialDecoder, has_mask: bool) -> None:
        super().__init__()
        encoder = types.SimpleNamespace(img_size=official.prompt_encoder.input_image_size[0])
        parts = types.SimpleNamespace(
            prompt_encoder=official.prompt_encoder,
            mask_decoder=official.mask_decoder,
            image_encoder=encoder,
            mask_threshold=0,
        )
        wrapper = importlib.import_module("segment_anything.utils.onnx").SamOnnxModel
        self.official, self.wrapper, self.has_mask = official, wrapper(parts, return_single_mask=False), has_mask

    def forward(self, embedding: Any, points: Any, labels: Any, masks: Any) -> tuple[torch.Tensor, torch.Tensor]:
        encoder = self.official.prompt_encoder
        no_mask = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        return self.official.mask_decoder.predict_masks(
            image_embeddings=embedding,
            image_pe=encoder.get_dense_pe(),
            sparse_prompt_embeddings=self.wrapper._embed_points(points, labels),
            dense_prompt_embeddings=self.wrapper._embed_masks(masks, torch.ones(1)) if self.has_mask else no_mask,
        )


def session(official: OfficialDecoder, has_mask: bool) -> onnxruntime.InferenceSession:
    """Return ONNX Runtime's decoder. The one without masks is spared their convolutions."""
    arguments = (torch.zeros(1, 256, 64, 64), torch.zeros(3, 2, 2), torch.zeros(3, 2), torch.zeros(3, 1, 256, 256))
    names = ["embedding", "points", "labels", "masks"]
    axes = {"points": {0: "p", 1: "n"}, "labels": {0: "p", 1: "n"}, "masks": {0: "p"}}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        path = os.path.join(folder, "decoder.onnx")
        torch.onnx.export(
            Exportable(official, has_mask), arguments, path, dynamo=False, input_names=names, dynamic_axes=axes
        )
        return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def onnx_runtime(
    session: onnxruntime.InferenceSession, embedding: np.ndarray, given: dict[str, Any], at_once: int
) -> Run:
    prompts = Prompts.build(**{name: value for name, value in given.items() if name != "masks"})
    points, labels = np.asarray(prompts.coordinates), np.asarray(prompts.labels, np.float32)
    inputs = {
        "embedding": np.ascontiguousarray(np.moveaxis(embedding, -1, 0))[None],
        "points": points,
        "labels": labels,
    }
    masks = given.get("masks", np.zeros((1, 256, 256), np.float32))[:, None]
    inputs["masks"] = np.broadcast_to(masks, (len(points), *masks.shape[1:]))
    wanted = {entry.name for entry in session.get_inputs()}

    def run() -> np.ndarray:
        out = []
        for i in range(0, len(points), at_once):
            part = {name: x if name == "embedding" else x[i : i + at_once] for name, x in inputs.items()}
            out.append(session.run(None, {name: x for name, x in part.items() if name in wanted})[0])
        return np.concatenate(out)

    return run


def ours(model: Sam, variables: Any, image: Any, given: dict[str, Any], path: str) -> Run:
    prompts = jax.device_put(Prompts.build(**given))
    chunk = default_chunk()
    return lambda: decode(model, variables, image, prompts, chunk, path).logits.block_until_ready()


def seconds(run: Run) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def fastest(runs: dict[int, Run]) -> Run:
    """Return the run whose number of prompt sets at once is the fastest of three."""
    return min(runs.values(), key=lambda run: min(seconds(run) for _ in range(3)))


def compare(sides: dict[str, Run], sets: int, rounds: int) -> dict[str, Any]:
    logits = {name: np.asarray(run()) for name, run in sides.items()}
    turns = [{name: seconds(run) for name, run in sides.items()} for _ in range(rounds)]
    reference = logits["pytorch"]
    return {
        name: {
            "per_second": round(sets / statistics.median(turn[name] for turn in turns), 2),
            "fastest_per_second": round(sets / min(turn[name] for turn in turns), 2),
            "times_onnx_runtime": round(statistics.median(turn["onnx_runtime"] / turn[name] for turn in turns), 2),
            "times_pytorch": round(statistics.median(turn["pytorch"] / turn[name] for turn in turns), 2),
            "difference": float(f"{np.abs(logits[name] - reference).max() / np.abs(reference).max():.1e}"),
        }
        for name in sides
    }


def main(cases: tuple[str, ...] = tuple(CASES), rounds: int = 5, paths: tuple[str, ...] = ("plain", "auto")) -> None:
    """Compare all sides.

    Args:
      cases: which of the cases.
      rounds: turns of every side.
      paths: which of our ways to decode; "auto" is the one that `predict_masks` takes.
    """
    official, model = random_decoder(SamConfig()), Sam()
    variables = jax.device_put(from_torch(official.tensors()).variables)
    embedding = np.random.default_rng(1).standard_normal((64, 64, 256), np.float32)
    prepared = jax.jit(prepare_image, static_argnums=0)(model, variables, embedding)
    sessions = {has_mask: session(official, has_mask) for has_mask in (False, True)}
    figures: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "versions": {"jax": jax.__version__, "torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
        "load_average": round(os.getloadavg()[0], 2),
        "rounds": rounds,
        "cases": {},
    }
    for name in cases:
        case = CASES[name]
        given, at_once = case.prompts(), [n for n in AT_ONCE if n <= case.sets]
        image = prepared if case.prepared else jax.device_put(embedding)
        sides = {
            "pytorch": fastest({n: pytorch(official, embedding, given, n) for n in at_once[-2:]}),
            "onnx_runtime": fastest({n: onnx_runtime(sessions[case.mask], embedding, given, n) for n in at_once[:3]}),
        }
        sides |= {path: ours(model, variables, image, given, path) for path in paths}
        tokens = Prompts.build(**given).labels.shape[-1]
        figures["cases"][name] = {
            "auto": choose_path(tokens, case.sets, case.mask, case.prepared),
            **compare(sides, case.sets, rounds),
        }
        print(json.dumps({name: figures["cases"][name]}), flush=True)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    tyro.cli(main)
