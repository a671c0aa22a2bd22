"""The other ways to run the decoder, with the same weights: the official package, its export, and transformers."""

import contextlib
import functools
import importlib
import io
import os
import tempfile
import types
import warnings
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import onnxruntime
import torch
import transformers
from parity.official import OfficialDecoder

from sam_jax import Prompts, SamConfig
from sam_jax.commands.bench import Run, seconds_of

PEERS = ("pytorch", "pytorch compiled", "pytorch compiled bfloat16", "onnx runtime", "transformers")

Given = dict[str, np.ndarray]
"""Arguments of `Prompts.build`: arrays with axes [image, prompt set, ...]."""

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
AT_ONCE = (1, 4, 16) if DEVICE.type == "cpu" else (16, 64)


class Peer(Protocol):
    """A way to decode prompt sets of one image at once."""

    masks: slice
    """Which of the masks it returns."""
    at_once: tuple[int, ...]
    """Numbers of prompt sets in one call that are tried, for the fastest."""

    def inputs(self, embedding: np.ndarray, given: Given) -> Any:
        """Return the arguments for an embedding [c, h, w] and prompts [prompt set, ...], where they are needed."""
        ...

    def __call__(self, inputs: Any) -> Any:
        """Return the logits [prompt set, mask, 4h, 4w]."""
        ...


def decoding(peer: Peer, embeddings: np.ndarray, given: Given, at_once: int) -> Run:
    """Return a call that decodes every image's prompt sets, `at_once` at a time, and returns a list of logits."""
    images, sets = next(iter(given.values())).shape[:2]
    parts = [
        peer.inputs(
            np.moveaxis(embeddings[image], -1, 0), {name: x[image, i : i + at_once] for name, x in given.items()}
        )
        for image in range(images)
        for i in range(0, sets, at_once)
    ]

    def run() -> list[Any]:
        with torch.inference_mode():
            logits = [peer(part) for part in parts]
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return logits

    return run


def fastest(peer: Peer, embeddings: np.ndarray, given: Given, prompt_sets: int) -> Run:
    """Return the call with the number of prompt sets at once that is the fastest for the first few, up to a number."""
    few = {name: x[:1, : max(peer.at_once)] for name, x in given.items()}
    sets = next(iter(few.values())).shape[1]
    sizes = [n for n in peer.at_once if n <= sets] or [sets]

    def duration(at_once: int) -> float:
        run = decoding(peer, embeddings, few, at_once)
        run()
        return min(seconds_of(run, 0) for _ in range(2))

    return decoding(peer, embeddings, {name: x[:, :prompt_sets] for name, x in given.items()}, min(sizes, key=duration))


def as_arrays(logits: list[Any]) -> np.ndarray:
    """Return what `decoding` returns as one array [prompt set of all images, mask, 4h, 4w]."""
    return np.concatenate([x.float().cpu().numpy() if isinstance(x, torch.Tensor) else x for x in logits])


class Official(torch.nn.Module):
    """The official package: all masks before the choice between one and three."""

    masks, at_once = slice(None), AT_ONCE

    def __init__(self, official: OfficialDecoder, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.prompt_encoder, self.mask_decoder, self.dtype = official.prompt_encoder, official.mask_decoder, dtype

    def inputs(self, embedding: np.ndarray, given: Given) -> dict[str, torch.Tensor]:
        masks = {"masks": given["masks"][:, None]} if "masks" in given else {}
        arrays = {"embedding": embedding[None]} | given | masks
        return {name: torch.tensor(x, dtype=torch.float32, device=DEVICE) for name, x in arrays.items()}

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        points = (inputs["points"], inputs["labels"]) if "points" in inputs else None
        with torch.autocast(DEVICE.type, self.dtype, enabled=self.dtype != torch.float32):
            sparse, dense = self.prompt_encoder(points, inputs.get("boxes"), inputs.get("masks"))
            position = self.prompt_encoder.get_dense_pe()
            return self.mask_decoder.predict_masks(inputs["embedding"], position, sparse, dense)[0]


class Compiled:
    """The official package under `torch.compile`, a program for every shape. It needs a C++ compiler on a CPU."""

    masks, at_once = slice(None), AT_ONCE[-2:-1]  # compiling takes most of a minute on two cores

    def __init__(self, official: Official) -> None:
        torch.compiler.reset()  # after eight shapes it would run eagerly, without a word
        self.inputs, self.program = official.inputs, torch.compile(official, dynamic=False)

    def __call__(self, inputs: Any) -> torch.Tensor:
        return self.program(inputs)


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


class OnnxRuntime:
    """ONNX Runtime with the official export, without the resize to the original image.

    The program for prompts without masks is spared the masks' convolutions. On a GPU, its time includes the way of the
    inputs and of the logits between the memories.
    """

    masks, at_once = slice(None), AT_ONCE

    def __init__(self, official: OfficialDecoder) -> None:
        self.session = functools.cache(functools.partial(exported, official))

    def inputs(self, embedding: np.ndarray, given: Given) -> dict[str, np.ndarray]:
        prompts = Prompts.build(**{name: x for name, x in given.items() if name != "masks"})
        points, labels = np.asarray(prompts.coordinates), np.asarray(prompts.labels, np.float32)
        masks = {"masks": given["masks"][:, None]} if "masks" in given else {}
        return {"embedding": np.ascontiguousarray(embedding)[None], "points": points, "labels": labels} | masks

    def __call__(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        return self.session("masks" in inputs).run(None, inputs)[0]


def exported(official: OfficialDecoder, has_mask: bool) -> onnxruntime.InferenceSession:
    """Return ONNX Runtime's session of the official decoder, on the CPU or, where it can, on the GPU."""
    wanted = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    arguments = (torch.zeros(1, 256, 64, 64), torch.zeros(3, 2, 2), torch.zeros(3, 2), torch.zeros(3, 1, 256, 256))
    names = ["embedding", "points", "labels", "masks"]
    axes = {"points": {0: "p", 1: "n"}, "labels": {0: "p", 1: "n"}, "masks": {0: "p"}}
    on_cpu = Exportable(official, has_mask).cpu()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        path = os.path.join(folder, "decoder.onnx")
        torch.onnx.export(on_cpu, arguments, path, dynamo=False, input_names=names, dynamic_axes=axes)
        official.to(DEVICE)
        return onnxruntime.InferenceSession(path, providers=providers)


class Transformers:
    """Hugging Face's `SamModel`, given image embeddings. It returns the three masks, without mask 0."""

    masks, at_once = slice(1, None), AT_ONCE
    names = types.MappingProxyType(
        {"points": "input_points", "labels": "input_labels", "boxes": "input_boxes", "masks": "input_masks"}
    )

    def __init__(self, config: SamConfig, tensors: dict[str, np.ndarray]) -> None:
        vision = {"hidden_size": 16, "mlp_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2}  # not used
        vision |= {"global_attn_indexes": [0], "output_channels": config.width, "num_pos_feats": config.width // 2}
        settings = transformers.SamConfig(
            vision_config=vision, mask_decoder_config={"layer_norm_eps": config.block_norm_eps}
        )
        self.model = transformers.SamModel(settings).eval().requires_grad_(False).to(DEVICE)
        gaussian = "positional_embedding"  # one matrix, of two parts
        tensors = tensors | {
            f"prompt_encoder.shared_embedding.{gaussian}": tensors[f"shared_image_embedding.{gaussian}"]
        }
        found = self.model.load_state_dict({name: torch.tensor(x) for name, x in tensors.items()}, strict=False)
        missing = [name for name in found.missing_keys if not name.startswith("vision_encoder.")]
        if missing or found.unexpected_keys:
            raise ValueError(f"SamModel has other weights: missing {missing}, unexpected {found.unexpected_keys}.")

    def inputs(self, embedding: np.ndarray, given: Given) -> dict[str, torch.Tensor]:
        if "masks" in given and len(given["masks"]) > 1:
            raise ValueError("transformers has one mask prompt for all prompt sets of an image")
        arrays = {"image_embeddings": embedding} | {self.names[name]: x for name, x in given.items()}
        return {name: torch.tensor(x[None], dtype=torch.float32, device=DEVICE) for name, x in arrays.items()}

    def __call__(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.model(**inputs, multimask_output=True).pred_masks[0]


def peers_of(
    official: OfficialDecoder, config: SamConfig, hf_tensors: dict[str, np.ndarray]
) -> dict[str, Callable[[], Peer]]:
    """Return what makes each peer, by name."""
    official = official.to(DEVICE)
    makers: dict[str, Callable[[], Peer]] = {
        "pytorch": lambda: Official(official),
        "pytorch compiled": lambda: Compiled(Official(official)),
        "onnx runtime": functools.cache(lambda: OnnxRuntime(official)),
        "transformers": functools.cache(lambda: Transformers(config, hf_tensors)),
    }
    if DEVICE.type == "cuda":
        makers["pytorch compiled bfloat16"] = lambda: Compiled(Official(official, torch.bfloat16))
    return makers
