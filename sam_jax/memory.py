"""How much memory this process has taken."""

import resource
import sys

import jax


def peak_memory() -> int:
    """Return the most bytes in use at once so far: of the first device where it counts, else what was resident."""
    counted = jax.devices()[0].memory_stats()
    if counted and "peak_bytes_in_use" in counted:
        return counted["peak_bytes_in_use"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
