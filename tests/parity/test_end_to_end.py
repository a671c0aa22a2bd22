"""`predict_masks` against the official prompt encoder and mask decoder, for every kind of prompt."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from parity.kinds import KINDS, QUIET, prompts_in_pixels

from sam_jax.batch.decode import Sizes
from sam_jax.batch.predict import predict_masks
from sam_jax.prompts import Prompts

TOLERANCE = 1e-5
"""As a share of the official logits' or IoUs' root mean square, in float32."""

# Few programs to compile, and empty slots beside every prompt set.
SIZES = Sizes(tokens=(8,), prompt_sets=(4,), images=(2,))

PATHS = ("plain", "absorbed", "low_rank")
"""How `predict_masks` can decode; "auto" chooses one."""


def can(path: str, kind: str) -> bool:
    """Image tokens of low rank are for prompts without masks."""
    return path != "low_rank" or "masks" not in KINDS[kind]


CASES = [("square", "auto", kind) for kind in KINDS]
CASES += [("wide", path, kind) for path in PATHS for kind in KINDS if can(path, kind)]


def check(compare: Any, logits: Any, iou: Any, official: Any, path: str) -> None:
    names = f"predicted logits, {path}", f"predicted iou, {path}"
    compare(dict(zip(names, (logits, iou), strict=True)), dict(zip(names, official, strict=True)), TOLERANCE)


@pytest.mark.parametrize(("pair", "path", "kind"), CASES, indirect=["pair"], scope="session")
def test_one_kind_of_prompt(pair, path, kind, rng, compare):
    embedding, given = rng(*pair.config.grid_size, pair.config.width), prompts_in_pixels(kind, pair.config, rng)
    prompts = Prompts.build(**given)
    ours = predict_masks(pair.model, pair.variables, jnp.asarray(embedding), prompts, sizes=SIZES, path=path)
    check(compare, ours.logits, ours.iou, pair.official(embedding, **given), path)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("pair", ["quiet"], indirect=True, scope="session")
def test_low_variance(pair, path, rng, compare):
    """What norms see has a variance of about epsilon, so that another epsilon changes the masks."""
    embedding = np.float32(QUIET) * rng(*pair.config.grid_size, pair.config.width)
    given = prompts_in_pixels("boxes and clicks", pair.config, rng)
    ours = predict_masks(pair.model, pair.variables, jnp.asarray(embedding), Prompts.build(**given), path=path)
    check(compare, ours.logits, ours.iou, pair.official(embedding, **given), path)


@pytest.mark.parametrize("pair", ["square", "wide"], indirect=True, scope="session")
def test_ragged_prompts_on_two_images(pair, rng, compare):
    """Each prompt set equals the official result of that prompt set alone, whatever empty slots are beside it."""
    embeddings = rng(2, *pair.config.grid_size, pair.config.width)
    kinds = (("one click", "box", "mask"), ("mask and box", "nothing", "background click", "masks and clicks"))
    rows = [[first_set(prompts_in_pixels(kind, pair.config, rng)) for kind in row] for row in kinds]
    ragged = {
        name: [[given[name][0] if name in given else None for given in row] for row in rows]
        for name in ("points", "labels", "boxes", "masks")
    }
    ours = predict_masks(pair.model, pair.variables, jnp.asarray(embeddings), Prompts.build(**ragged), sizes=SIZES)
    np.testing.assert_array_equal(ours.valid, [[True, True, True, False], [True, True, True, True]])
    for i, row in enumerate(rows):
        logits, iou = zip(*(pair.official(embeddings[i], **given) for given in row), strict=True)
        real = slice(len(row))
        official = np.concatenate(logits), np.concatenate(iou)
        check(compare, ours.logits[i, real], ours.iou[i, real], official, "auto")


def first_set(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value[:1] for name, value in given.items()}


@pytest.mark.parametrize(
    ("kind", "path"), [("masks and clicks", "plain"), ("mask and box", "absorbed"), ("boxes and clicks", "low_rank")]
)
@pytest.mark.parametrize("pair", ["full-size"], indirect=True, scope="session")
def test_full_size(pair, kind, path, rng, compare):
    embedding, given = rng(*pair.config.grid_size, pair.config.width), prompts_in_pixels(kind, pair.config, rng)
    ours = predict_masks(pair.model, pair.variables, jnp.asarray(embedding), Prompts.build(**given), path=path)
    check(compare, ours.logits, ours.iou, pair.official(embedding, **given), path)
