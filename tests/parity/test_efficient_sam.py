"""EfficientSAM against `torch_efficient_sam.py`, which has it in plain PyTorch: no package does."""

import copy
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from parity.official import difference, modeling, randomise_norms
from parity.relatives import tensors_of
from parity.torch_efficient_sam import Mlp, TorchEfficientSam, TwoWayBlock
from torch.nn import functional

import sam_jax
from sam_jax.batch.decode import Sizes
from sam_jax.config import TINY, SamConfig
from sam_jax.convert.encoders import encoder_from_torch, encoder_to_torch
from sam_jax.convert.state_dict import from_torch, to_torch
from sam_jax.convert.tables.settings import OWN
from sam_jax.decoder.mask_decoder import MaskDecoder
from sam_jax.encoders.bicubic import bicubic_matrix
from sam_jax.encoders.config import EFFICIENT_SAM_S, EFFICIENT_SAM_TI, ViTConfig, config_to_dict
from sam_jax.encoders.vit import ImageEncoder
from sam_jax.errors import CheckpointError
from sam_jax.images.preprocess import prepare

TOLERANCE = {"float32": 1e-5, "float64": 1e-9}
"""As shares of the root mean square of PyTorch's values."""

ENCODER = ViTConfig(
    width=24,
    depth=3,
    heads=3,
    mlp_width=96,
    patch_size=16,
    global_blocks=(0, 1, 2),
    out_width=32,
    position_side=4,
    image_size=(96, 160),
    preprocessing="efficient_sam",
)
CONFIG = dataclasses.replace(
    TINY, efficient_sam=True, postprocessing="efficient_sam", image_size=(96, 160), grid_size=(6, 10)
)
SIZES = Sizes(tokens=(16,), prompt_sets=(16,), images=(1,))

CLICKS = [[20.0, 30.0], [100.5, 90.0], [159.0, 0.0], [0.0, 95.0], [60.0, 50.0], [7.0, 8.0], [90.0, 9.0], [50.0, 5.0]]
BOX = [10.0, 20.0, 90.0, 70.0]
PROMPTS: dict[str, tuple[list[list[float]], list[int], list[float] | None]] = {
    "one click": (CLICKS[:1], [1], None),
    "six clicks": (CLICKS[:6], [1, 1, 1, 1, 1, 1], None),
    "eight clicks, of which six count": (CLICKS, [1, 1, 1, 1, 1, 1, 1, 1], None),
    "a background click has a place and nothing else": (CLICKS[:2], [1, 0], None),
    "what is no point keeps its place": (CLICKS[:3], [1, -1, 1], None),
    "only what is no point": (CLICKS[:1], [-1], None),
    "outside": ([[-0.5, 30.0], [20.0, -0.25]], [1, 1], None),
    "box": ([], [], BOX),
    "box and clicks": (CLICKS[:3], [1, 0, -1], BOX),
    "box cut off": (CLICKS[:5], [1, 1, 1, 1, 1], BOX),
    "nothing": ([], [], None),
}
"""Clicks, their labels, and a box."""


def random_efficient_sam(config: SamConfig, encoder: ViTConfig | None = None) -> TorchEfficientSam:
    """Return the model with PyTorch's own random weights, but norms that are no ones and zeros."""
    torch.manual_seed(0)
    model = TorchEfficientSam(config, encoder).eval().requires_grad_(False)
    randomise_norms(model)
    return model


THEIRS = random_efficient_sam(CONFIG, ENCODER)
OURS = sam_jax.Sam(CONFIG)
VARIABLES = from_torch(tensors_of(THEIRS)).variables
ENCODER_SETTINGS = {OWN: {"encoder": config_to_dict(ENCODER)}}
ENCODER_VARIABLES = encoder_from_torch(tensors_of(THEIRS), settings=ENCODER_SETTINGS).variables


def random_embedding() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((*CONFIG.grid_size, CONFIG.width), np.float32)


def prompts() -> sam_jax.Prompts:
    clicks, labels, boxes = zip(*PROMPTS.values(), strict=True)
    some = lambda values: [value or None for value in values]  # noqa: E731
    return sam_jax.Prompts.build(points=some(clicks), labels=some(labels), boxes=some(boxes))


def of_torch(model: TorchEfficientSam, embedding: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the stand-in's logits and scores of one prompt set; a box is two points behind the clicks."""
    clicks, labels, box = PROMPTS[name]
    corners, corner_labels = ([box[:2], box[2:]], [2, 3]) if box else ([], [])
    points = torch.tensor([*clicks, *corners]).reshape(1, -1, 2)
    out = model(torch.tensor(np.moveaxis(embedding, -1, 0)), points, torch.tensor([[*labels, *corner_labels]]))
    return tuple(array[0].numpy() for array in out)  # type: ignore[return-value]


def test_every_prompt() -> None:
    """By the plain modules; `tests/fast` has the other forms against them."""
    embedding, variables = random_embedding(), jax.tree.map(jnp.asarray, VARIABLES)
    out = sam_jax.predict_masks(OURS, variables, embedding, prompts(), sizes=SIZES, path="plain")
    for i, name in enumerate(PROMPTS):
        logits, iou = of_torch(THEIRS, embedding, name)
        assert difference(out.logits[i], logits) <= TOLERANCE["float32"], name
        assert difference(out.iou[i], iou) <= TOLERANCE["float32"], name
    logits, iou = sam_jax.select_masks(out)
    np.testing.assert_array_equal(logits, out.logits[:, 1:])
    np.testing.assert_array_equal(iou, out.iou[:, 1:])


def test_the_mask_decoder_in_float64() -> None:
    """With PyTorch's prompt tokens and positions: ours are float32 always."""
    theirs, (h, w) = copy.deepcopy(THEIRS).double(), CONFIG.grid_size
    points, labels = torch.tensor([[CLICKS[0], BOX[:2], BOX[2:]]]), torch.tensor([[1, 2, 3]])
    embedding = random_embedding().astype(np.float64)
    logits, iou = theirs(torch.tensor(np.moveaxis(embedding, -1, 0)), points, labels)
    with jax.enable_x64(True):
        tokens, position = theirs.tokens(points, labels, CONFIG.image_size)[0].numpy(), theirs.grid(h, w).numpy()
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), VARIABLES["params"]["mask_decoder"])
        decoder = MaskDecoder(dataclasses.replace(CONFIG, dtype="float64"))
        run = jax.jit(lambda params, *inputs: decoder.apply({"params": params}, *inputs))
        ours = run(params, embedding, np.zeros_like(embedding), position, tokens, np.ones(len(tokens), bool))
        assert difference(ours.logits, logits[0].numpy()) <= TOLERANCE["float64"]
        assert difference(ours.iou, iou[0].numpy()) <= TOLERANCE["float64"]


def sams_self_attention(model: TorchEfficientSam) -> None:
    def forward(block: TwoWayBlock, queries: Any, keys: Any, query_pe: Any, key_pe: Any) -> Any:
        if block.first:
            queries = block.self_attn(queries, queries, queries)
        else:
            placed = queries + query_pe
            queries = queries + block.self_attn(placed, placed, queries)
        queries = block.norm1(queries)
        queries = block.norm2(queries + block.cross_attn_token_to_image(queries + query_pe, keys + key_pe, keys))
        queries = block.norm3(queries + block.mlp(queries))
        return queries, block.norm4(keys + block.cross_attn_image_to_token(keys + key_pe, queries + query_pe, queries))

    for block in model.mask_decoder["transformer"].layers:
        block.forward = forward.__get__(block)


def norm_over_channels(model: TorchEfficientSam) -> None:
    first = model.mask_decoder["final_output_upscaling_layers"][0]
    norm = modeling.common.LayerNorm2d(len(first[1].weight)).requires_grad_(False)
    norm.load_state_dict(first[1].state_dict())
    first[1] = norm


def relu(model: TorchEfficientSam) -> None:
    for mlp in (part for part in model.modules() if isinstance(part, Mlp)):
        for layer in mlp.layers:
            layer[1] = torch.nn.ReLU()


def no_place_for_what_is_no_point(model: TorchEfficientSam) -> None:
    fourier = model.fourier
    model.fourier = lambda places: fourier(places) * (places >= 0).all(-1, keepdim=True)


def no_padding(model: TorchEfficientSam) -> None:
    model.slots = 1


TRAPS = (
    sams_self_attention,
    norm_over_channels,
    relu,
    no_place_for_what_is_no_point,
    no_padding,
)


@pytest.mark.parametrize("trap", TRAPS)
def test_a_trap_moves_the_logits_by_far_more_than_the_tolerance(trap: Any) -> None:
    mutated = copy.deepcopy(THEIRS)
    trap(mutated)
    embedding = random_embedding()
    logits, _ = of_torch(THEIRS, embedding, "one click")
    assert difference(of_torch(mutated, embedding, "one click")[0], logits) > 0.1


def test_the_encoder(dtype: str) -> None:
    theirs = copy.deepcopy(THEIRS.image_encoder).to(getattr(torch, dtype))
    image = np.random.default_rng(2).standard_normal((*ENCODER.image_size, 3)).astype(dtype)
    want = theirs(torch.tensor(image).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    for remat in (False, True):
        encoder = ImageEncoder(dataclasses.replace(ENCODER, dtype=dtype, remat=remat))
        variables = jax.tree.map(lambda x: jnp.asarray(x, dtype), ENCODER_VARIABLES)
        assert difference(jax.jit(encoder.apply)(variables, image), want) <= TOLERANCE[dtype]


@pytest.mark.parametrize(("size", "new"), [(14, 64), (4, 10), (256, 333), (256, 100)])
def test_the_bicubic_resize(size: int, new: int) -> None:
    eye = torch.eye(size, dtype=torch.float64)[None]
    want = functional.interpolate(eye[:, None], (size, new), mode="bicubic", align_corners=False)[0, 0].T
    np.testing.assert_allclose(bicubic_matrix(size, new), want, atol=1e-12)


@pytest.mark.parametrize(("encoder", "numbers"), [(EFFICIENT_SAM_TI, 10_223_460), (EFFICIENT_SAM_S, 26_413_284)])
def test_ti_and_s_are_told_by_their_shapes(encoder: ViTConfig, numbers: int) -> None:
    with torch.device("meta"):
        state = TorchEfficientSam(SamConfig(), encoder).state_dict()
    tensors = {f"model.{name}": np.broadcast_to(np.float32(0), tensor.shape) for name, tensor in state.items()}
    decoder, image_encoder = from_torch(tensors), encoder_from_torch(tensors)
    assert (len(tensors), sum(tensor.size for tensor in tensors.values())) == (278, numbers)
    assert decoder.family.name == image_encoder.family.name == "efficient_sam"
    assert decoder.config == SamConfig(efficient_sam=True, postprocessing="efficient_sam")
    assert image_encoder.config == encoder
    assert len(decoder.ignored) == 153
    assert len(image_encoder.ignored) == 125


def test_there_and_back() -> None:
    tensors = tensors_of(THEIRS)
    back = to_torch(OURS, VARIABLES) | encoder_to_torch(ImageEncoder(ENCODER), ENCODER_VARIABLES)
    assert {name: tensor.shape for name, tensor in back.items()} == {n: t.shape for n, t in tensors.items()}
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)


def test_hugging_face_has_no_names() -> None:
    with pytest.raises(ValueError, match=r"^Hugging Face has no names for EfficientSAM: "):
        to_torch(OURS, VARIABLES, "hf")
    with pytest.raises(ValueError, match=r"^Hugging Face has no names for EfficientSAM's ViT"):
        encoder_to_torch(ImageEncoder(ENCODER), ENCODER_VARIABLES, "hf")


def test_every_tensor_has_to_fit() -> None:
    tensors = tensors_of(THEIRS)
    for name in tensors:
        short = {other: tensor for other, tensor in tensors.items() if other != name}
        convert, settings = from_torch, None
        if name.startswith("image_encoder."):
            convert, settings = encoder_from_torch, ENCODER_SETTINGS
        if "gaussian" in name:
            continue
        with pytest.raises(CheckpointError, match=rf"missing:\n.*{name}"):
            convert(short, settings=settings)
    with pytest.raises(CheckpointError, match=r"unexpected:\n.*no_mask_embed"):
        from_torch(tensors | {"prompt_encoder.no_mask_embed.weight": np.zeros((1, 32), np.float32)})


def test_a_file_is_loaded(tmp_path: Any) -> None:
    """As published: tensors below `model`; the settings are those of the full size."""
    encoder = dataclasses.replace(EFFICIENT_SAM_TI, width=64, heads=1, mlp_width=256, out_width=64)
    theirs = random_efficient_sam(dataclasses.replace(SamConfig(), width=64, mlp_width=64, heads=8), encoder)
    torch.save({"model": theirs.state_dict()}, tmp_path / "efficient_sam_vitt.pt")
    predictor = sam_jax.Predictor.load(tmp_path / "efficient_sam_vitt.pt")
    assert predictor.model.config.efficient_sam
    assert predictor.encoder.config == encoder


@pytest.mark.parametrize("size", [(96, 160), (37, 51), (200, 170), (300, 90)])
def test_pixels(size: tuple[int, int]) -> None:
    image = np.random.default_rng(3).integers(0, 256, (*size, 3), np.uint8)
    frame, input_size = prepare(image, CONFIG.image_size, "efficient_sam")
    want = THEIRS.preprocess(torch.tensor(image).permute(2, 0, 1)).permute(1, 2, 0)
    assert input_size == CONFIG.image_size
    np.testing.assert_allclose(frame, want, atol=1e-4)  # PyTorch rounds the places that it reads


@pytest.mark.parametrize("size", [(120, 90), (37, 251)])
def test_from_pixels_to_masks(size: tuple[int, int]) -> None:
    """`Predictor`: two objects, of one click, and of a box with a click. PyTorch rounds the places of pixels."""
    predictor = sam_jax.Predictor(OURS, VARIABLES, ImageEncoder(ENCODER), ENCODER_VARIABLES)
    image = np.random.default_rng(4).integers(0, 256, (*size, 3), np.uint8)
    predictor.set_image(image)
    click, box = [20.0, 30.0], [3.0, 5.0, 80.0, 35.0]
    ours = predictor.predict(points=[[click], [click]], labels=[[1], [0]], boxes=[None, box])
    embedding = THEIRS.image_encoder(THEIRS.preprocess(torch.tensor(image).permute(2, 0, 1)))
    for i, (points, labels) in enumerate((([click], [1]), ([click, box[:2], box[2:]], [0, 2, 3]))):
        logits, scores = THEIRS(embedding, torch.tensor([points]), torch.tensor([labels]), size)
        large = THEIRS.postprocess(logits, size)[0, 1:].numpy()
        assert difference(ours.logits[i], logits[0, 1:].numpy()) <= 5 * TOLERANCE["float32"]
        assert difference(ours.scores[i], scores[0, 1:].numpy()) <= 5 * TOLERANCE["float32"]
        wrong = ours.masks[i] != (large >= 0)
        assert not (wrong & (np.abs(large) > 1e-4 * np.abs(large).max())).any()


@pytest.mark.parametrize("size", [(120, 90), (37, 251)])
def test_masks_at_the_image_s_size(size: tuple[int, int]) -> None:
    """By the functions of low-res logits. In float32, PyTorch rounds the places of pixels."""
    logits = np.random.default_rng(6).standard_normal((3, *CONFIG.mask_size), np.float32)
    sizes: Any = {"input_size": CONFIG.image_size, "original_size": size, "postprocessing": CONFIG.postprocessing}
    want = THEIRS.postprocess(torch.tensor(logits, dtype=torch.float64)[None], size)[0].numpy()
    assert difference(sam_jax.resize_masks(logits, **sizes), want) <= TOLERANCE["float32"]
    clear = np.abs(want) > 1e-4
    np.testing.assert_array_equal(np.asarray(sam_jax.binary_masks(logits, **sizes))[clear], (want >= 0)[clear])


@pytest.mark.parametrize("size", [(120, 90), (37, 251)])
def test_every_object(size: tuple[int, int]) -> None:
    """The masks of a grid of points, counted at the image's size as they are there."""
    predictor = sam_jax.Predictor(OURS, VARIABLES, ImageEncoder(ENCODER), ENCODER_VARIABLES)
    image = np.random.default_rng(7).integers(0, 256, (*size, 3), np.uint8)
    everything = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}
    records = predictor.generate(image, points_per_side=2, stability_score_offset=0.1, **everything)
    embedding = THEIRS.image_encoder(THEIRS.preprocess(torch.tensor(image).permute(2, 0, 1)))
    wanted = {}
    for point in {tuple(record["point_coords"][0]) for record in records}:
        logits, scores = THEIRS(embedding, torch.tensor([[point]]), torch.tensor([[1]]), size)
        large = THEIRS.postprocess(logits, size)[0, 1:].numpy()
        wanted |= {(point, i): (large[i], float(score)) for i, score in enumerate(scores[0, 1:])}
    assert len(records) == len(wanted) == 12
    for record in records:
        of_point = [want for (point, _), want in wanted.items() if [*point] == record["point_coords"][0]]
        large, score = min(of_point, key=lambda want: abs(want[1] - record["predicted_iou"]))
        assert abs(score - record["predicted_iou"]) < 1e-4
        wrong = record["segmentation"] != (large >= 0)
        assert not (wrong & (np.abs(large) > 1e-4 * np.abs(large).max())).any()
        assert record["area"] == record["segmentation"].sum()
        y, x = np.nonzero(record["segmentation"])
        assert record["bbox"] == [x.min(), y.min(), x.max() - x.min(), y.max() - y.min()]
        stability = (large > 0.1).sum() / (large > -0.1).sum()
        assert abs(record["stability_score"] - stability) < 1e-3


def test_masks_as_prompts_are_refused() -> None:
    asked = sam_jax.Prompts.build(masks=np.random.default_rng(5).standard_normal((1, *CONFIG.mask_size)))
    with pytest.raises(ValueError, match=r"^EfficientSAM takes no mask prompts"):
        sam_jax.predict_masks(OURS, VARIABLES, random_embedding(), asked)
