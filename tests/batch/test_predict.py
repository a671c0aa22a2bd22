import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_model import MODEL, random_embedding, random_variables

from sam_jax import MaskPrediction, Prompts, Sam, Sizes, best_masks, predict_masks
from sam_jax.batch.decode import decode_batch, round_up

CONFIG = MODEL.config
VARIABLES = random_variables()
EMBEDDING = random_embedding()
CLICK = Prompts.build(points=[[[20, 30]]], labels=[[1]])


@functools.cache
def unpadded() -> Any:
    return jax.jit(MODEL.apply)


def one_by_one(embedding: jax.Array, prompt_set: dict[str, Any]) -> MaskPrediction:
    """The prompt set on its own, with exactly its tokens."""
    alone = Prompts.build(**{name: [value] for name, value in prompt_set.items() if value is not None})
    return unpadded()(VARIABLES, embedding, jax.tree.map(lambda x: x[0], alone))


def difference(a: jax.Array, b: jax.Array) -> float:
    return float(jnp.abs(a - b).max() / jnp.abs(b).max())


@st.composite
def prompt_sets(draw: st.DrawFn) -> dict[str, Any]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    clicks, box, mask = draw(st.sampled_from([0, 1, 3])), draw(st.booleans()), draw(st.booleans())
    corner = rng.uniform(0, 60, 2)
    return {
        "points": rng.uniform(0, 128, (clicks, 2)) if clicks else None,
        "labels": rng.integers(0, 2, clicks) if clicks else None,
        "boxes": np.concatenate([corner, corner + rng.uniform(1, 60, 2)]) if box else None,
        "masks": rng.normal(size=CONFIG.mask_size) * 5 if mask else None,
    }


def as_arguments(images: list[list[dict[str, Any]]]) -> dict[str, Any]:
    names = ("points", "labels", "boxes", "masks")
    return {name: [[prompt_set[name] for prompt_set in row] for row in images] for name in names}


# Few sizes, so that the examples share their compiled programs.
SIZES = Sizes(tokens=(8,), prompt_sets=(6,), images=(3,))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.lists(st.lists(prompt_sets(), max_size=5), min_size=1, max_size=3))
def test_padding_changes_nothing(images: list[list[dict[str, Any]]]) -> None:
    """Ragged prompts of every mixture over several images equal each prompt set alone, and padding is marked."""
    embeddings = random_embedding(len(images))
    prompts = Prompts.build(**as_arguments(images), images=True)
    out = predict_masks(MODEL, VARIABLES, embeddings, prompts, sizes=SIZES)
    assert out.valid.shape == (len(images), max(len(row) for row in images))
    for i, row in enumerate(images):
        assert out.valid[i].tolist() == [j < len(row) for j in range(out.valid.shape[1])]
        assert (out.iou[i, len(row) :] == -jnp.inf).all()
        for j, prompt_set in enumerate(row):
            alone = one_by_one(embeddings[i], prompt_set)
            assert difference(out.logits[i, j], alone.logits) < 2e-6
            np.testing.assert_allclose(out.iou[i, j], alone.iou, atol=2e-6 * jnp.abs(alone.iou).max())


def test_any_amount_of_padding_changes_nothing() -> None:
    want = predict_masks(MODEL, VARIABLES, EMBEDDING, CLICK)
    for tokens, sets in ((3, 1), (40, 5)):
        out = decode_batch(MODEL, VARIABLES, EMBEDDING, CLICK.pad(tokens, sets), 4)
        assert difference(out.logits[:1], want.logits) < 1e-6
        assert (out.iou[1:] == -jnp.inf).all()


def test_what_an_empty_slot_holds_does_not_matter() -> None:
    padded = CLICK.pad(4, 1)
    other = padded.replace(coordinates=_fill(padded.coordinates))
    out = decode_batch(MODEL, VARIABLES, EMBEDDING, padded, 4)
    again = decode_batch(MODEL, VARIABLES, EMBEDDING, other, 4)
    np.testing.assert_array_equal(out.logits, again.logits)


def _fill(coordinates: np.ndarray) -> np.ndarray:
    filled = coordinates.copy()
    filled[:, 2:] = 77
    return filled


def test_not_a_point_is_no_empty_slot() -> None:
    """Extra label -1 tokens are attended to: taking them for padding changes the masks."""
    padded = CLICK.pad(4, 1)
    wrong = padded.replace(labels=np.where(padded.labels == -2, -1, padded.labels))
    out, changed = (decode_batch(MODEL, VARIABLES, EMBEDDING, p, 4) for p in (padded, wrong))
    assert difference(changed.logits, out.logits) > 0.05


@pytest.mark.slow
def test_a_stream_of_requests_compiles_once_per_size() -> None:
    compiled = []

    def count(event: str, seconds: float, fun_name: str = "", **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration" and fun_name == "jit(decode_batch)":
            compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(count)
    rng = np.random.default_rng(0)
    sizes = Sizes(tokens=(4, 9), prompt_sets=(1, 5), images=(2,))
    used = set()
    for _ in range(1000):
        images, sets, clicks = (int(rng.integers(1, end)) for end in (3, 6, 8))
        shape = (images, sets, clicks)
        prompts = Prompts.build(points=rng.uniform(0, 128, (*shape, 2)), labels=np.ones(shape))
        embeddings = np.zeros((images, *CONFIG.grid_size, CONFIG.width), np.float32)
        predict_masks(MODEL, VARIABLES, embeddings, prompts, sizes=sizes)
        used.add((round_up(clicks + 1, sizes.tokens), round_up(sets, sizes.prompt_sets)))
    assert len(used) == 4
    assert len(compiled) == 4


@pytest.mark.parametrize("chunk", [1, 3])
def test_the_chunk_changes_nothing(chunk: int) -> None:
    prompts = Prompts.build(boxes=np.array([[0, 0, 9 * i + 5, 50] for i in range(7)], np.float32))
    want = predict_masks(MODEL, VARIABLES, EMBEDDING, prompts, chunk=7)
    out = predict_masks(MODEL, VARIABLES, EMBEDDING, prompts, chunk=chunk)
    assert difference(out.logits, want.logits) < 1e-6


def test_round_up() -> None:
    assert [round_up(n, (2, 4, 8)) for n in (0, 1, 2, 3, 8, 9, 17)] == [2, 2, 2, 4, 8, 16, 24]


# Every transformation.

EMBEDDINGS = random_embedding(2)
BOXES = np.array([[10, 10, 60, 60], [5, 30, 90, 100]], np.float32)
PROMPTS = Prompts.build(boxes=BOXES)


def reference() -> jax.Array:
    return predict_masks(MODEL, VARIABLES, EMBEDDINGS[0], PROMPTS).logits


def test_jit() -> None:
    out = jax.jit(lambda v, e, p: predict_masks(MODEL, v, e, p))(VARIABLES, EMBEDDINGS[0], PROMPTS)
    assert difference(out.logits, reference()) < 1e-6


def test_vmap_over_images_sets_and_both() -> None:
    def one(embedding: jax.Array, prompts: Prompts) -> jax.Array:
        return predict_masks(MODEL, VARIABLES, embedding, prompts).logits

    over_images = jax.jit(jax.vmap(one, (0, None)))(EMBEDDINGS, PROMPTS)
    assert difference(over_images[0], reference()) < 1e-6
    single = jax.tree.map(lambda x: x[:, None], PROMPTS)
    over_sets = jax.jit(jax.vmap(one, (None, 0)))(EMBEDDINGS[0], single)
    assert difference(over_sets[:, 0], reference()) < 1e-6
    over_both = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))(EMBEDDINGS, single)
    assert difference(over_both[0, :, 0], reference()) < 1e-6


def test_vmap_over_variables() -> None:
    ensemble = jax.tree.map(lambda *x: jnp.stack(x), VARIABLES, random_variables(seed=5))
    out = jax.jit(jax.vmap(lambda v: predict_masks(MODEL, v, EMBEDDINGS[0], PROMPTS).logits))(ensemble)
    assert difference(out[0], reference()) < 1e-6
    assert difference(out[1], reference()) > 0.1


def test_grad_equals_finite_difference_and_remat_changes_nothing() -> None:
    with jax.enable_x64(True):
        variables, embeddings = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (VARIABLES, EMBEDDINGS))
        model = Sam(dataclasses.replace(MODEL.config, dtype="float64"))

        @jax.jit
        def loss(embedding: jax.Array) -> jax.Array:
            return (predict_masks(model, variables, embedding, PROMPTS, path="plain").logits ** 2).mean()

        embedding, direction = embeddings[:2]
        slope = jnp.vdot(jax.jit(jax.grad(loss))(embedding), direction)
        again = jnp.vdot(jax.jit(jax.grad(jax.checkpoint(loss)))(embedding), direction)
        step = 1e-5
        measured = (loss(embedding + step * direction) - loss(embedding - step * direction)) / (2 * step)
    np.testing.assert_allclose(slope, measured, rtol=1e-6)
    np.testing.assert_allclose(slope, again, rtol=1e-12)


def test_gradients_of_every_parameter_are_finite_with_padding() -> None:
    prompts = CLICK.pad(8, 2)

    def loss(params: Any) -> jax.Array:
        out = predict_masks(MODEL, {**VARIABLES, "params": params}, EMBEDDING, prompts)
        return (out.logits**2).mean() + jnp.where(out.valid[:, None], out.iou, 0).sum()

    gradients = jax.jit(jax.grad(loss))(VARIABLES["params"])
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(gradients))
    assert float(jnp.abs(gradients["mask_decoder"]["iou_token"]).max()) > 0


def test_scan_over_images() -> None:
    def step(carry: None, embedding: jax.Array) -> tuple[None, jax.Array]:
        return carry, predict_masks(MODEL, VARIABLES, embedding, PROMPTS).logits

    _, out = jax.jit(lambda e: jax.lax.scan(step, None, e))(EMBEDDINGS)
    assert difference(out[0], reference()) < 1e-6


def test_a_pipeline_is_one_compilation() -> None:
    """Embeddings in, boxes from another jitted function, masks out; new values compile nothing."""
    traces = []

    @jax.jit
    def find_boxes(embedding: jax.Array) -> jax.Array:
        size = jnp.abs(embedding.mean((0, 1)))[:8].reshape(2, 4)
        return jnp.concatenate([size[:, :2], 50 + size[:, 2:]], -1)

    @jax.jit
    def pipeline(variables: Any, embedding: jax.Array) -> jax.Array:
        traces.append(None)
        return predict_masks(MODEL, variables, embedding, Prompts.build(boxes=find_boxes(embedding))).logits > 0

    for embedding in EMBEDDINGS:
        masks = pipeline(VARIABLES, embedding)
        assert masks.shape == (2, 4, *CONFIG.mask_size)
    assert len(traces) == 1


def test_what_depends_on_the_image_alone_is_computed_once() -> None:
    """The Fourier features of the grid's rows and columns have no prompt-set axis in the traced program."""
    jaxpr = jax.make_jaxpr(lambda p: decode_batch(MODEL, VARIABLES, EMBEDDING, p, 8))(
        Prompts.build(boxes=np.tile(BOXES, (4, 1)))
    )
    sines = [line for line in str(jaxpr).splitlines() if " = sin " in line]
    for size in CONFIG.grid_size:
        assert any(f"f32[{size},{CONFIG.width // 2}]" in line for line in sines)
        assert not any(f"f32[8,{size},{CONFIG.width // 2}]" in line for line in sines)


@pytest.mark.parametrize(
    ("embeddings", "prompts", "message"),
    [
        (np.zeros((32, 8, 8)), PROMPTS, r"must be \[8, 8, 32\].*channels first.*moveaxis"),
        (np.zeros((8, 8, 16)), PROMPTS, r"must be \[8, 8, 32\].*got an array of shape \(8, 8, 16\)"),
        (
            np.zeros((2, 8, 8, 32)),
            PROMPTS,
            r"axes \[image, prompt set\].*got \[2\].*Prompts\.build\(\.\.\., images=True\)",
        ),
        (np.zeros((8, 8, 32)), Prompts.build(boxes=BOXES[None], images=True), r"axes \[prompt set\].*got \[1, 2\]"),
        (np.zeros((3, 8, 8, 32)), Prompts.build(boxes=BOXES[None], images=True), r"got \[1, 2\] prompt sets"),
        (np.zeros((8, 8, 32)), Prompts.build(boxes=[[0, 0, 130, 9]]), r"x up to 128.*\(130, 9\).*\(y, x\)"),
        (
            np.zeros((8, 8, 32)),
            Prompts.build(masks=np.full((1, 16, 16), -2.0)),
            r"must be \[32, 32\] logits.*got \[16, 16\]",
        ),
        (np.zeros((8, 8, 32)), {"points": [[1, 2]]}, r"must come from sam_jax\.Prompts\.build"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_bad_inputs_are_named_before_any_compilation(embeddings: np.ndarray, prompts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        predict_masks(MODEL, VARIABLES, embeddings, prompts)


@pytest.mark.parametrize("path", ["plain", "absorbed", "low_rank"])
def test_the_best_mask_alone_is_chosen_in_the_chunk(path: Any) -> None:
    """Three prompt sets on each of two images, one at a time: a click, a clear prompt, and padding."""
    clicks = [[[[20, 30]], [[20, 30], [60, 60], [90, 20]]], [[[80, 80]]]]
    prompts = Prompts.build(clicks, [[[1], [1, 0, 1]], [[1]]])
    want = predict_masks(MODEL, VARIABLES, EMBEDDINGS, prompts, path=path, chunk=1)
    out = predict_masks(MODEL, VARIABLES, EMBEDDINGS, prompts, path=path, chunk=1, best=True)
    logits, iou = best_masks(want, prompts)
    assert out.logits.shape == (2, 2, 1, 32, 32)
    np.testing.assert_allclose(out.logits[:, :, 0], logits, atol=2e-5 * float(np.abs(logits).max()))
    np.testing.assert_allclose(out.iou[:, :, 0], iou, atol=1e-5)


def test_the_masks_that_are_not_chosen_cost_no_memory() -> None:
    prompts = Prompts.build(boxes=np.tile([[10.0, 10, 60, 60]], (64, 1)))

    def memory(best: bool) -> Any:
        return decode_batch.lower(MODEL, VARIABLES, EMBEDDING, prompts, 4, best=best).compile().memory_analysis()

    chosen, every = (memory(best) for best in (True, False))
    one = 64 * 32 * 32 * 4
    assert every.output_size_in_bytes - chosen.output_size_in_bytes >= 3 * one
    assert chosen.temp_size_in_bytes < every.temp_size_in_bytes + one


def test_bad_chunk_and_sizes() -> None:
    with pytest.raises(ValueError, match="chunk must be a positive number of prompt sets, got 0"):
        predict_masks(MODEL, VARIABLES, EMBEDDING, CLICK, chunk=0)
    with pytest.raises(ValueError, match=r"Sizes\.tokens must be increasing positive integers"):
        Sizes(tokens=(4, 2))
