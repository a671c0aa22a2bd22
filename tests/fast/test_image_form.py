"""The forms of the image tokens against the plain modules: step by step, and as a whole."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_model import FAMILIES, random_embedding, random_features, random_variables

from sam_jax import MaskPrediction, Prompts, Sam
from sam_jax.config import TINY, SamConfig
from sam_jax.decoder.attention import Attention
from sam_jax.decoder.layers import ConvTranspose2x2, gelu, layer_norm
from sam_jax.decoder.mask_decoder import Upscaling
from sam_jax.fast import fused, kernels_cuda
from sam_jax.fast.absorbed import WrittenForm, decode_absorbed
from sam_jax.fast.fused import decode_in_kernels
from sam_jax.fast.image_form import (
    HeadMaps,
    centred_kernel,
    channels_first,
    heads_of,
    in_order,
    joined,
    linear,
    product,
    scaled,
    unfused,
    upscale,
    written_image,
)
from sam_jax.fast.low_rank import ImageState, decode_low_rank, prepare_image

GRID, HW = (3, 5), 15
WIDE = dataclasses.replace(TINY, image_size=(96, 160), grid_size=GRID)
CONFIGS = {
    "two blocks": WIDE,
    "one block": dataclasses.replace(WIDE, depth=1, attention_downsample=1, block_norm_eps=1e-3),
    "three blocks": dataclasses.replace(WIDE, depth=3, heads=4, multimask_outputs=1, final_norm_eps=1e-3),
} | {name: dataclasses.replace(WIDE, **settings) for name, settings in FAMILIES.items()}
KERNELS = ("tpu", "cuda")
FORMS = ("low_rank", "absorbed", *KERNELS)
RELATIVES = ("sam_hq", "sam2", "hq_sam2", "efficient_sam")


def decode_in(form: str, model: Sam, variables: Any, features: Any, prompts: Prompts) -> MaskPrediction:
    """Decode prompt sets on one image in a form."""
    if form == "low_rank":
        return decode_low_rank(model, variables, prepare_image(model, variables, features), prompts)
    if form == "absorbed":
        return decode_absorbed(model, variables, written_image(model, variables, features), prompts)
    if form in KERNELS:
        return decode_in_kernels(model, form, True, variables, written_image(model, variables, features), prompts)
    return jax.vmap(functools.partial(model.apply, variables, features))(prompts)


jitted = jax.jit(decode_in, static_argnums=(0, 1))


def model_of(name: str, dtype: str = "float64") -> Sam:
    return Sam(dataclasses.replace(CONFIGS[name], dtype=dtype))


def share(difference: jax.Array, of: jax.Array) -> float:
    return float(jnp.abs(difference).max() / jnp.abs(of).max())


def assert_same(ours: MaskPrediction, plain: MaskPrediction, tolerance: float) -> None:
    assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, plain)
    assert ours.logits.dtype == plain.logits.dtype
    for name in ("logits", "iou", "object_score", "hq"):
        if (of_plain := getattr(plain, name)) is not None:
            assert share(getattr(ours, name) - of_plain, of_plain) < tolerance, name
    if plain.single is not None:
        np.testing.assert_array_equal(ours.single, plain.single)


@pytest.fixture(autouse=True)
def exact_gelu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GELU of a GPU's kernels has an error of its own (test_cuda.py), which would hide others in float64."""
    monkeypatch.setattr(kernels_cuda, "gelu", gelu)


@pytest.fixture
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


# Steps: an image token attends, is attended to, is normalised and upscaled as in the plain modules.


@dataclasses.dataclass
class Case:
    """A model, tokens that take part in attention, and the image tokens of a prompt set, plain and in a form."""

    config: SamConfig
    params: Any
    form: Any
    image: Any
    plain: jax.Array
    position: jax.Array
    tokens: jax.Array
    mask: jax.Array

    def block(self, i: int) -> Any:
        return self.params["two_way"][f"block_{i}"]

    def heads(self, attention: Any, name: str) -> jax.Array:
        """What a projection makes of the tokens, with [prompt set]."""
        return heads_of(linear(attention[name], self.tokens), self.config.heads)[None]

    def update(self, i: int) -> None:
        """Go through block i's image-to-token attention and norm on both sides."""
        block, config = self.block(i), self.config
        attention, norm = block["image_to_token"], block["norm_image_to_token"]
        key, value = scaled(self.heads(attention, "key")), self.heads(attention, "value")
        self.image = self.form.update(i, block, self.image, key, value, self.mask[None])
        gathered = plain_attention(config, attention, self.plain + self.position, self.tokens, self.tokens, self.mask)
        norm_module = layer_norm(config.block_norm_eps, jnp.dtype(config.dtype))
        self.plain = norm_module.apply({"params": norm}, self.plain + gathered)


def plain_attention(config: SamConfig, params: Any, *inputs: jax.Array) -> jax.Array:
    attention = Attention(config.width, config.heads, config.attention_downsample, jnp.dtype(config.dtype))
    return attention.apply({"params": params}, *inputs)


@functools.cache
def first_case(form_name: str, number: int) -> Case:
    model = model_of("three blocks")
    config, variables = model.config, random_variables(model, dtype=np.float64)
    embedding = random_embedding(model=model).astype(float)
    encoder = model.bind(variables).prompt_encoder
    plain = (embedding + encoder.dense(GRID, None, None)).reshape(HW, -1)
    position = encoder.positions(GRID).reshape(HW, -1)
    if form_name == "low_rank":
        form: Any = jax.jit(prepare_image, static_argnums=0)(model, variables, embedding)
        image = None
    else:
        form = WrittenForm(position.T, config.block_norm_eps)
        image = form.written(plain.T[None])
    tokens = jnp.asarray(np.random.default_rng(5).normal(size=(number, config.width)))
    mask = jnp.arange(number) % 3 != 2
    return Case(config, variables["params"]["mask_decoder"], form, image, plain, position, tokens, mask)


@pytest.fixture(params=[("low_rank", 6), ("low_rank", 12), ("absorbed", 6)], ids=["few", "many", "absorbed"])
def case(request: pytest.FixtureRequest, x64: None) -> Case:
    """A case of few or many tokens, in a form."""
    return dataclasses.replace(first_case(*request.param))


def test_attention_and_norm_of_every_block(case: Case) -> None:
    """What tokens gather, before every update and after the last one, shows each update."""
    for i in range(4):
        params = case.block(i)["token_to_image"] if i < 3 else case.params["two_way"]["final_token_to_image"]
        gathered, _ = case.form.gather(i, params, case.image, scaled(case.heads(params, "query")))
        want = plain_attention(case.config, params, case.tokens, case.plain + case.position, case.plain)
        np.testing.assert_allclose(linear(params["out"], joined(gathered))[0], want, atol=1e-11)
        if i < 3:
            case.update(i)


def test_the_image_is_upscaled(case: Case) -> None:
    for i in range(3):
        case.update(i)
    params = case.params["upscaling"]
    kernel, bias = centred_kernel(params["conv_0"])
    first = () if isinstance(case.form, ImageState) else (kernel, bias)
    convolve, parts = case.form.convolution(case.image, *first)
    convolved = convolve(*(x[0] for x in parts))
    np.testing.assert_allclose(convolved, kernel @ case.plain.T + bias[:, None], atol=1e-11)
    ours = in_order(upscale(params, convolved, HeadMaps()), GRID)
    upscaled = Upscaling(case.config).apply({"params": params}, case.plain.reshape(*GRID, -1))
    np.testing.assert_allclose(ours, jnp.moveaxis(upscaled, -1, 0), atol=1e-11)


def test_a_centred_kernel_takes_the_mean_of_each_sub_pixel_away(rng: Any) -> None:
    params = {"kernel": jnp.asarray(rng(2, 2, 6, 8)), "bias": jnp.asarray(rng(6))}
    kernel, bias = centred_kernel(params)
    image = jnp.asarray(rng(3, 5, 8))
    plain = ConvTranspose2x2(6, jnp.float32).apply({"params": params}, image)
    sub_pixels = (jnp.einsum("oc,hwc->ohw", kernel, image) + bias[:, None, None]).reshape(2, 2, 6, 3, 5)
    ours = sub_pixels.transpose(3, 0, 4, 1, 2).reshape(6, 10, 6)
    np.testing.assert_allclose(ours, plain - plain.mean(-1, keepdims=True), atol=1e-5)


def test_channels_first(rng: Any) -> None:
    x = rng(3, 5, 4)
    np.testing.assert_array_equal(channels_first(jnp.asarray(x)), x.reshape(15, 4).T)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_unfused_is_the_identity(dtype: str, rng: Any) -> None:
    with jax.enable_x64(dtype == "float64"):
        x = jnp.asarray(rng(100) * np.logspace(-30, 30, 100), dtype)
        value, gradient = jax.jvp(unfused, (x,), (x,))
        assert value.dtype == x.dtype
        assert (value == x).all()
        assert (gradient == x).all()


# The whole: the same logits and scores as the plain modules.


def clicks() -> Prompts:
    rng = np.random.default_rng(2)
    return Prompts.build(points=rng.uniform(0, 90, (2, 1, 2)), labels=rng.integers(0, 2, (2, 1)))


def mixed() -> Prompts:
    """Prompt sets of all kinds but masks: many clicks, one, a box, a click and a box, nothing; with empty slots."""
    rng = np.random.default_rng(2)
    points, box = rng.uniform(0, 90, (17, 2)), [10.0, 20.0, 60.0, 50.0]
    return Prompts.build(
        points=[points, points[:1], None, points[1:2], None],
        labels=[rng.integers(0, 2, 17), [1], None, [0], None],
        boxes=[None, None, box, box, None],
    )


def masked(prompts: Prompts) -> Prompts:
    """The same prompts, the first with a mask prompt."""
    mask = jnp.asarray(np.random.default_rng(3).normal(size=(2, 12, 20)) * 5)
    return prompts.replace(masks=mask, has_mask=jnp.array([True, False]))


@pytest.mark.parametrize("form", FORMS)
def test_every_prompt_in_float64(form: str, x64: None) -> None:
    model = model_of("two blocks")
    arguments = base_variables("float64"), random_embedding(model=model), mixed().pad(20, 6)
    ours, plain = (jitted(name, model, *arguments) for name in (form, "plain"))
    assert ours.valid.tolist() == [True] * 5 + [False]
    assert jnp.isneginf(ours.iou[5]).all()
    assert_same(*(jax.tree.map(lambda x: x[:5], out) for out in (ours, plain)), 1e-10)


@pytest.mark.parametrize(
    ("family", "form"),
    [
        pair for pair in itertools.product(RELATIVES, FORMS) if pair[0] != "efficient_sam" or pair[1] not in KERNELS
    ],  # which has no kernels
)
def test_every_family(family: str, form: str, x64: None) -> None:
    model = model_of(family)
    arguments = random_variables(model, dtype=np.float64), random_features(model=model), mixed()
    assert_same(jitted(form, model, *arguments), jitted("plain", model, *arguments), 1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_no_prompt_tokens_at_all(form: str, x64: None) -> None:
    model = model_of("one block")
    prompts = jax.tree.map(lambda x: x, mixed()).replace(
        coordinates=jnp.zeros((5, 0, 2)), labels=jnp.zeros((5, 0), int)
    )
    arguments = random_variables(model, dtype=np.float64), random_embedding(model=model), prompts
    assert_same(jitted(form, model, *arguments), jitted("plain", model, *arguments), 1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_three_blocks_four_heads_and_two_masks(form: str, x64: None) -> None:
    model = model_of("three blocks")
    arguments = random_variables(model, dtype=np.float64), random_embedding(model=model), clicks()
    assert_same(jitted(form, model, *arguments), jitted("plain", model, *arguments), 1e-10)


@pytest.mark.parametrize("form", ["absorbed", *KERNELS])
def test_mask_prompts(form: str, x64: None) -> None:
    model = model_of("two blocks")
    arguments = base_variables("float64"), random_embedding(model=model), masked(clicks())
    ours = jitted(form, model, *arguments)
    assert_same(ours, jitted("plain", model, *arguments), 1e-10)
    without = jitted(form, model, *arguments[:2], clicks())
    changes = jnp.abs(ours.logits - without.logits).max((1, 2, 3)) / jnp.abs(without.logits).max()
    assert changes[0] > 0.01
    assert changes[1] < 1e-12


@functools.cache
def base_variables(dtype: str) -> Any:
    return random_variables(model_of("two blocks", dtype), dtype=np.dtype(dtype))


def redrawn(seed: int, dtype: str, loudness: float = 1) -> Any:
    """Shuffled weights; with a `loudness`, norm scales of both signs, and biases and attention logits times it."""
    rng = np.random.default_rng(seed)

    def change(path: Any, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        shuffled = rng.permutation(np.ravel(leaf)).reshape(leaf.shape)
        if loudness != 1 and name.endswith("scale"):
            shuffled = rng.normal(size=leaf.shape)
        return jnp.asarray(shuffled * (loudness if name.endswith(("bias", "query/kernel")) else 1), leaf.dtype)

    return jax.tree_util.tree_map_with_path(change, base_variables(dtype))


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), loudness=st.sampled_from([0.1, 5.0, 20.0]), scale=st.sampled_from([0.1, 10.0]))
def test_any_weights_and_image_in_float64(form: str, seed: int, loudness: float, scale: float) -> None:
    with jax.enable_x64(True):
        model = model_of("two blocks")
        arguments = redrawn(seed, "float64", loudness), random_embedding(model=model, seed=seed) * scale, clicks()
        assert_same(jitted(form, model, *arguments), jitted("plain", model, *arguments), 1e-9)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_any_weights_and_image_in_float32(form: str, seed: int) -> None:
    model = model_of("two blocks", "float32")
    arguments = redrawn(seed, "float32"), random_embedding(model=model, seed=seed), clicks()
    assert_same(jitted(form, model, *arguments), jitted("plain", model, *arguments), 5e-6)


def loss(form: str, model: Sam, params: Any, constants: Any, features: Any) -> jax.Array:
    out = decode_in(form, model, {"params": params, "constants": constants}, features, clicks())
    outputs = (out.logits, out.iou, out.object_score, out.hq)
    return sum(jnp.sin(x).sum() for x in outputs if x is not None)


gradient = jax.jit(jax.grad(loss, argnums=(2, 4)), static_argnums=(0, 1))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["one block", "sam_hq", "sam2"])
def test_gradients_are_those_of_the_plain_form(name: str, form: str, x64: None) -> None:
    model = model_of(name)
    variables, features = random_variables(model, dtype=np.float64), random_features(model=model)
    arguments = variables["params"], variables["constants"], jax.tree.map(lambda x: x.astype(float), features)
    ours, plain = (gradient(name, model, *arguments) for name in (form, "plain"))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-8 * (1 + jnp.abs(b).max()), err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("form", FORMS)
def test_many_images_and_many_weights_at_once(form: str) -> None:
    model, prompts = model_of("two blocks", "float32"), clicks()
    embeddings = random_embedding(3, model=model)
    variables = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(redrawn(seed, "float32") for seed in (0, 1, 2)))
    together = jax.jit(jax.vmap(functools.partial(decode_in, form, model), in_axes=(0, 0, None)))
    out = together(variables, embeddings, prompts)
    for i in range(3):
        alone = jitted(form, model, *jax.tree.map(lambda x, i=i: x[i], (variables, embeddings)), prompts)
        assert share(out.logits[i] - alone.logits, alone.logits) < 5e-6


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_is_near(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # XLA's CPU backend has no batches of products of bfloat16 into float32; in float32 they are the same sums.
    of_float32 = lambda subscripts, *operands: product(subscripts, *(x.astype(jnp.float32) for x in operands))  # noqa: E731
    monkeypatch.setattr(fused, "product", of_float32)
    exact, rounded = model_of("two blocks", "float32"), model_of("two blocks", "bfloat16")
    arguments = base_variables("float32"), random_embedding(model=exact), clicks()
    want, ours = jitted("plain", exact, *arguments), jitted(form, rounded, *arguments)
    plain = jitted("plain", rounded, *arguments)
    assert jax.tree.map(lambda x: x.dtype, ours) == jax.tree.map(lambda x: x.dtype, plain)
    assert share(ours.logits - want.logits, want.logits) < 2 * share(plain.logits - want.logits, want.logits) + 0.01
