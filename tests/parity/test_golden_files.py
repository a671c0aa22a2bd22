"""The frozen numbers are what `make_golden.py` writes today."""

import numpy as np
import pytest
from golden.make_golden import CONFIG, FOLDER, golden_files

from sam_jax.config import SamConfig


@pytest.fixture(scope="module")
def fresh() -> dict[str, dict[str, np.ndarray]]:
    return golden_files()


def test_files(fresh):
    assert {path.stem for path in FOLDER.glob("*.npz")} == fresh.keys()
    assert SamConfig.from_json((FOLDER / "config.json").read_text()) == CONFIG
    assert sum(path.stat().st_size for path in FOLDER.glob("*.npz")) < 450_000


@pytest.mark.parametrize(
    "name", ["weights", "predictions", "stages", "low_variance", "masks", "sam_hq", "sam2", "efficient_sam"]
)
def test_arrays(name, fresh):
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as frozen:
        assert set(frozen.files) == fresh[name].keys()
        for key, array in fresh[name].items():
            np.testing.assert_allclose(array, frozen[key], rtol=1e-5, atol=1e-5 * np.abs(array).max(), err_msg=key)
