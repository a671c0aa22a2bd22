"""Pairs of an official decoder and ours with the same random weights, and the table of their differences."""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity.kinds import quieten
from parity.official import OfficialDecoder, difference, random_decoder

from sam_jax.config import TINY, SamConfig
from sam_jax.convert.state_dict import from_torch
from sam_jax.decoder.model import Sam

# The norm over the 2 channels that TINY has after the first mask convolution amplifies rounding; 4 are what SAM has.
SMALL = dataclasses.replace(TINY, mask_channels=16)
DECODERS = {
    "square": SMALL,
    "wide": dataclasses.replace(SMALL, image_size=(96, 160), grid_size=(6, 10)),
    "full-size": SamConfig(),
    "quiet": SMALL,
}

Arrays = Mapping[str, Any]


class Pair(NamedTuple):
    """The same decoder twice."""

    config: SamConfig
    official: OfficialDecoder
    model: Sam
    variables: Any


@pytest.fixture(autouse=True)
def as_users_compile(optimised: None) -> None:
    """Compare what users run."""


@pytest.fixture(scope="session")
def pair(request: pytest.FixtureRequest) -> Pair:
    """The pair of the name in `DECODERS` that a test's `indirect` parameter gives."""
    config = DECODERS[request.param]
    official = random_decoder(config)
    if request.param == "quiet":
        official.set_tensors(quieten(official.tensors()))
    variables = jax.tree.map(jnp.asarray, from_torch(official.tensors()).variables)
    return Pair(config, official, Sam(config), variables)


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> Iterator[str]:
    with jax.enable_x64(request.param == "float64"):
        yield request.param


@pytest.fixture
def compare(record_property: Callable[[str, object], None]) -> Callable[[Arrays, Arrays, float], None]:
    """Compare named arrays of both, all before any failure, and keep the differences for the table."""

    def compare(ours: Arrays, official: Arrays, tolerance: float) -> None:
        assert ours.keys() == official.keys()
        found = {name: difference(ours[name], official[name]) for name in official}
        precisions = {str(np.asarray(array).dtype) for array in ours.values()}
        record_property("differences", (precisions.pop(), found))
        assert not precisions
        assert {name: value for name, value in found.items() if not value <= tolerance} == {}

    return compare


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the largest difference of each stage over all tests."""
    table: dict[str, dict[str, float]] = collections.defaultdict(dict)
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for key, value in getattr(report, "user_properties", ()):
            if key == "differences" and report.when == "call":
                precision, found = value
                for name, amount in found.items():
                    table[name][precision] = max(amount, table[name].get(precision, 0))
    if table:
        terminalreporter.section("largest difference from the official decoder / root mean square of its values")
        for name, row in table.items():
            cells = [f"{row[dtype]:12.1e}" if dtype in row else " " * 12 for dtype in ("float32", "float64")]
            terminalreporter.write_line(f"{name:50}" + "".join(cells))
