"""What all tests share. Shape and type annotations are checked while they run."""

import functools
import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import beartype
import jax
import jaxtyping
import numpy as np
import pytest

# Meshes are tested on virtual devices; not by an environment variable, which processes that tests start would inherit.
jax.config.update("jax_num_cpu_devices", 8)
# Most of the time goes into compiling, and XLA's optimisations change no fact that is tested; parity turns them on.
jax.config.update("jax_disable_most_optimizations", True)
if jax.__version_info__ < (0, 11):  # compiles three times as fast; later versions end on a flag they do not know
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false".strip()
# Processes that tests start share what they compile, and leave the user's cache alone.
CACHE = tempfile.TemporaryDirectory(prefix="sam_jax_tests_")
os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE.name
jax.config.update("jax_enable_compilation_cache", False)

REFERENCES = ("torch", "segment_anything", "transformers", "sam2", "segment_anything_hq", "efficientsam")
MISSING = [name for name in REFERENCES if importlib.util.find_spec(name) is None]
collect_ignore = ["parity"] if MISSING else []


def pytest_report_header() -> str:
    """Say why the comparison with PyTorch is left out, where it is."""
    return f"parity: not collected, for want of {', '.join(MISSING)}" if MISSING else "parity: collected"


def typecheck(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check the types of a function's arguments and result; an int is a float too.

    A dataclass is checked only if it is made of arrays: JAX also makes pytrees of placeholders, and classes of settings
    have errors of their own. The converter has no shapes, and checks what it reads itself.
    """
    if function.__module__.startswith("sam_jax.convert"):
        return function
    checked = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))(function)
    if function.__name__ != "__init__":
        return checked

    @functools.wraps(function)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        fields = [field for field in (*args, *kwargs.values()) if field is not None]
        of_arrays = bool(fields) and all(isinstance(field, (jax.Array, np.ndarray)) for field in fields)
        return (checked if of_arrays else function)(self, *args, **kwargs)

    return init


jaxtyping.install_import_hook("sam_jax", f"{__name__}.typecheck")


@pytest.fixture(scope="session")
def variables() -> dict[str, Any]:
    """Random variables of the tiny decoder of `random_model`."""
    from random_model import random_variables  # the hook comes first

    return random_variables()


@pytest.fixture
def optimised() -> Iterator[None]:
    """Compile as users do, with all of XLA's optimisations."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def untyped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test pass what the annotations forbid, to see the error that users get."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def rng() -> Callable[..., np.ndarray]:
    """Standard normal float32 arrays of a given shape, the same in every run."""
    generator = np.random.default_rng(0)
    return lambda *shape: generator.standard_normal(shape, np.float32)
