"""What `import sam_jax` adds to `import jax, flax`: medians of fresh processes, in turns.

python benchmarks/imports.py
"""

import json
import statistics
import subprocess
import sys

BASE = "import time; begin = time.perf_counter(); import jax, flax.linen; "
SIDES = {
    "jax and flax": "",
    "and sam_jax": "import sam_jax; ",
    "and sam_jax, predict_masks used": "import sam_jax; sam_jax.Prompts, sam_jax.predict_masks, sam_jax.resize_masks; ",
}


def seconds(code: str) -> float:
    run = [sys.executable, "-P", "-c", BASE + code + "print(time.perf_counter() - begin)"]
    return float(subprocess.run(run, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    turns = [{name: seconds(code) for name, code in SIDES.items()} for _ in range(9)]
    print(json.dumps({name: statistics.median(turn[name] for turn in turns) for name in SIDES}, indent=2))


if __name__ == "__main__":
    main()
