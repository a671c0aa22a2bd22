import functools

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from random_model import random_variables
from small_run import MODEL

import sam_jax
from sam_jax.train.learning.heads import change_masks

VARIABLES = random_variables(MODEL)


@functools.cache
def changed(outputs: int):
    """The test model with another number of masks, its variables, and the report."""
    return change_masks(jax.random.key(0), MODEL, VARIABLES, outputs)


@pytest.mark.parametrize("outputs", [1, 5])
def test_the_masks_that_stay_are_what_they_were(outputs):
    model, variables, report = changed(outputs)
    kept = 1 + min(outputs, 3)
    assert model.config.num_masks == outputs + 1
    assert report.partly
    for path, leaf in flatten_dict(VARIABLES, sep="/").items():
        fresh = flatten_dict(variables, sep="/")[path]
        if path in report.partly:
            axis = next(i for i in range(leaf.ndim) if leaf.shape[i] != fresh.shape[i])
            of_kept = (slice(None),) * axis + (slice(kept),)
            np.testing.assert_array_equal(fresh[of_kept], leaf[of_kept])
        else:
            assert path in report.loaded
            np.testing.assert_array_equal(fresh, leaf)


def test_the_report_names_what_is_new():
    _, _, report = changed(5)
    assert report.partly["params/mask_decoder/mask_tokens"] == "masks 0 to 3 loaded, 4 to 5 initialised"
    assert set(report.partly) == {
        "params/mask_decoder/mask_tokens",
        *(f"params/mask_decoder/hypernetworks/layer_{i}/{leaf}" for i in range(3) for leaf in ("kernel", "bias")),
        *(f"params/mask_decoder/iou_head/layer_1/{leaf}" for leaf in ("kernel", "bias")),
    }
    first, *paths = str(report).splitlines()
    assert first.endswith(" loaded as they are, 9 with a part for each mask, masks 0 to 3 loaded, 4 to 5 initialised:")
    assert [path.strip() for path in paths] == [*report.partly]
    assert changed(1)[2].dropped == 2
    assert "masks 0 to 1 loaded, 2 dropped:" in str(changed(1)[2])
    assert report.dropped == 0


def test_a_changed_decoder_goes_to_disk_and_back(tmp_path):
    model, variables, _ = changed(5)
    sam_jax.save(tmp_path / "model", model, variables)
    assert sam_jax.load(tmp_path / "model")[0] == model
    tensors = sam_jax.convert.to_torch(model, variables)
    assert tensors["mask_decoder.mask_tokens.weight"].shape[0] == 6
