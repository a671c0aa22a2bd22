"""Prompt sets per second beside the official package, eager and compiled, ONNX Runtime, and transformers, in one run.

    PYTHONPATH=tests python benchmarks/decoder.py --cases "*1 click*" --peers pytorch "onnx runtime" --out decoder.json

gives all sides the same full-size decoder with random weights and runs them in turns. It writes JSON after every case,
a plot beside it as .png, and prints a Markdown table. Beside every speed stand the largest difference of the logits
from the official package's, as a share of the largest logit, and the mean IoU of the masks with its masks, both of the
first prompt sets. Ratios are medians over the rounds of those in a round. Compilation is not in the figures.

Our side is `jax.jit` of `predict_masks`. A new image is an embedding, so that what depends on the image alone is in the
figures; a prepared one has been through `prepare_image`. Peers decode as many prompt sets per call as suits them best;
they are slow and their rate does not rise with the number, so it is measured with at most --peer-sets.

On a GPU the same command measures all precisions, and counts the FLOPs and bytes of our program, for which --roofline
gives the peaks. XLA counts the body of a loop once, so there are none on a CPU and for more than one chunk.
"""

import dataclasses
import fnmatch
import itertools
import json
import statistics
import sys
import warnings
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
import onnxruntime
import torch
import transformers
import tyro
from cases import CASES, Case
from parity.official import random_decoder
from peers import DEVICE, PEERS, Official, as_arrays, decoding, peers_of
from sides import CHECKED, Precision, Side, Way, can_decode, first_logits, ours, peer_side

from sam_jax import Prompts, Sam, SamConfig
from sam_jax.batch.decode import Path as DecoderPath
from sam_jax.batch.decode import choose_path
from sam_jax.commands.bench import in_turns, machine
from sam_jax.convert import from_torch, to_torch
from sam_jax.images.draw import side_by_side
from sam_jax.images.plot import line_plot


def exactness(logits: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Return how far logits, and the masks that they make, are from the official package's."""
    both, either = (logits > 0) & (reference > 0), (logits > 0) | (reference > 0)
    ious = both.sum((-2, -1)) / np.maximum(1, either.sum((-2, -1)))
    return {
        "difference": float(f"{np.abs(logits - reference).max() / np.abs(reference).max():.1e}"),
        "mask_iou": round(float(np.where(either.any((-2, -1)), ious, 1).mean()), 6),
    }


def compare(
    sides: dict[str, Side], reference: np.ndarray, rounds: int, roofline: tuple[float, float] | None
) -> dict[str, Any]:
    """Return the figures of every side."""
    exact = {name: exactness(first_logits(side), reference[:, side.masks]) for name, side in sides.items()}
    turns = in_turns({name: side.run for name, side in sides.items()}, rounds)
    each = {name: [seconds / side.sets for seconds in turns[name]] for name, side in sides.items()}
    figures = {}
    for name, side in sides.items():
        seconds = statistics.median(turns[name])
        figures[name] = {
            "per_second": round(side.sets / seconds, 2),
            "fastest_per_second": round(1 / min(each[name]), 2),
            "prompt_sets": side.sets,
            **exact[name],
            "times": {
                other: round(statistics.median(b / a for a, b in zip(each[name], each[other], strict=True)), 2)
                for other in sides
                if other != name
            },
        }
        if side.costs and roofline:
            figures[name] |= side.costs | {"share_of_roofline": round(shortest(side.costs, roofline) / seconds, 4)}
    return figures


def shortest(costs: dict[str, float], roofline: tuple[float, float]) -> float:
    """Return the seconds that the device needs at least, at its peaks in GFLOP/s and GB/s."""
    return max(costs["flops"] / roofline[0], costs["bytes"] / roofline[1]) / 1e9


def table(cases: dict[str, Any]) -> str:
    """Return a Markdown table: prompt sets a second by side, how many times the peers the first is, its difference."""
    found = dict.fromkeys(name for figures in cases.values() for name in figures["sides"])
    names = sorted(found, key=lambda name: name in PEERS)
    first, peers = names[0], [name for name in names if name in PEERS]
    header = ["prompt sets a second", *names, *(f"{first} / {name}" for name in peers), f"{first}'s difference"]
    rows = [header, ["---"] + ["---:"] * (len(header) - 1)]
    for case, figures in cases.items():
        sides = figures["sides"]
        rates = [f"{sides[name]['per_second']:.3g}" if name in sides else "" for name in names]
        times = sides.get(first, {}).get("times", {})
        ratios = [f"{times[name]:.1f}x" if name in times else "" for name in peers]
        rows.append([case, *rates, *ratios, f"{sides[first]['difference']:.0e}" if first in sides else ""])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def plot(cases: dict[str, Any], out: Path) -> None:
    """Write plots of the rates against prompt sets on one image and against clicks, where there are several numbers."""
    panels = []
    for title, number, of_interest in (
        ("prompt sets a second, by one-click prompt sets on a new image", "sets", {"clicks": 1}),
        ("prompt sets a second, by clicks in each of 16 prompt sets", "clicks", {"sets": 16}),
    ):
        alike = dataclasses.asdict(Case(1)) | of_interest
        curves: dict[str, list[tuple[float, float]]] = {}
        for figures in cases.values():
            if figures["case"] == alike | {number: figures["case"][number]}:
                for name, side in figures["sides"].items():
                    curves.setdefault(name, []).append((figures["case"][number], side["per_second"]))
        numbers = {x for x, _ in itertools.chain(*curves.values())}
        if len(numbers) > 1:
            panels.append((title, line_plot(curves, number, "prompt sets a second", size=(720, 360), doubling=True)))
    if panels:
        side_by_side(panels).save(out.with_suffix(".png"))


def main(
    cases: tuple[str, ...] = ("*",),
    peers: tuple[str, ...] = ("pytorch", "onnx runtime"),
    paths: tuple[DecoderPath, ...] = ("auto",),
    precisions: tuple[Precision, ...] | None = None,
    chunks: tuple[int, ...] = (),
    devices: int = 1,
    rounds: int = 5,
    peer_sets: int = 64,
    roofline: tuple[float, float] | None = None,
    out: Path = Path("decoder.json"),
) -> None:
    """Compare all sides.

    Args:
      cases: which of the cases, by name; * and ? stand for any letters.
      peers: which of pytorch, pytorch compiled, pytorch compiled bfloat16 (on a GPU), onnx runtime, transformers.
      paths: which of our ways to decode; auto is what predict_masks takes.
      precisions: of ours; by default float32, on a GPU all.
      chunks: numbers of prompt sets that we decode at once; by default predict_masks' own.
      devices: decode on so many devices, too; on a CPU they are virtual.
      rounds: turns of every side.
      peer_sets: prompt sets on an image with which peers are measured at most.
      roofline: peak GFLOP/s and GB/s of the device.
      out: file for the JSON.
    """
    if devices > 1:
        jax.config.update("jax_num_cpu_devices", devices)
    precisions = precisions or (("float32",) if jax.default_backend() == "cpu" else get_args(Precision))
    numbers = (1, devices) if devices > 1 else (1,)
    all_ways = [Way(*way) for way in itertools.product(paths, precisions, chunks or (None,), numbers)]

    torch.backends.cudnn.allow_tf32 = False  # in float32, as products of matrices are by default
    official = random_decoder(SamConfig())
    conversion = from_torch(official.tensors())
    variables = jax.device_put(conversion.variables)
    makers = peers_of(official, SamConfig(), to_torch(Sam(), conversion.variables, "hf"))
    report: dict[str, Any] = {
        "machine": machine()
        | {package.__name__: package.__version__ for package in (torch, onnxruntime, transformers)}
        | {"torch device": DEVICE.type, "onnx runtime": onnxruntime.get_available_providers()},
        "rounds": rounds,
        "cases": {},
    }
    for name in (name for name in CASES if any(fnmatch.fnmatch(name, pattern) for pattern in cases)):
        case, given = CASES[name], CASES[name].prompts()
        shape = (case.images, *SamConfig().grid_size, SamConfig().width)
        embeddings = np.random.default_rng(1).standard_normal(shape, np.float32)
        tokens = Prompts.build(**given, images=True).labels.shape[-1]
        few = {key: x[:1, :CHECKED] for key, x in given.items()}
        reference = as_arrays(decoding(Official(official), embeddings, few, 1)())
        sides = {way.name: ours(way, variables, embeddings, case) for way in all_ways if can_decode(way, case)}
        found = {peer: peer_side(makers[peer], embeddings, given, peer_sets) for peer in peers}
        sides |= {peer: side for peer, side in found.items() if isinstance(side, Side)}
        report["cases"][name] = {
            "case": dataclasses.asdict(case),
            "path": choose_path(tokens, case.sets, case.mask, case.prepared),
            "sides": compare(sides, reference, rounds, roofline),
            "not measured": {peer: side for peer, side in found.items() if isinstance(side, str)},
        }
        print(
            name,
            {side: figure["per_second"] for side, figure in report["cases"][name]["sides"].items()},
            file=sys.stderr,
        )
        out.write_text(json.dumps(report, indent=2) + "\n")
    plot(report["cases"], out)
    print(table(report["cases"]))


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="torch")
    tyro.cli(main)
