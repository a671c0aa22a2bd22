"""What each part of our decoder returns, by its path: to compare with the official one, live or frozen."""

from typing import Any

import jax
import jax.numpy as jnp

from sam_jax.config import SamConfig
from sam_jax.decoder.mask_decoder import MaskDecoder
from sam_jax.decoder.prompt_encoder import MaskDownscaling

TWO = (" tokens", " image")
"""What is put behind the path of a part that returns both."""


def decoder_stages(config: SamConfig, params: Any, image: Any, position: Any, sparse: Any) -> dict[str, jax.Array]:
    """Return what every part of the mask decoder returns, and `logits` and `iou`, in the dtype of `config`.

    Args:
      config: settings of the decoder.
      params: the mask decoder's parameters.
      image: image embedding plus dense prompt embedding.
      position: positional part of the grid.
      sparse: sparse embeddings, all of them real.
    """
    decoder = MaskDecoder(config)

    @jax.jit
    def run(params: Any, *inputs: jax.Array) -> dict[str, jax.Array]:
        variables = {"params": params}
        image, *rest = inputs
        out, state = decoder.apply(variables, image, jnp.zeros_like(image), *rest, capture_intermediates=True)
        parts = _by_path(state["intermediates"])
        mask_tokens = parts["two_way tokens"][1 : 1 + len(out.iou)]
        weights = decoder.apply(variables, method=lambda self: self.hypernetworks(mask_tokens))
        return (
            parts
            | {f"hypernetworks/{i}": row for i, row in enumerate(weights)}
            | {"logits": out.logits, "iou": out.iou}
        )

    return run(*_of_dtype((params, image, position, sparse), config), jnp.ones(len(sparse), bool))


def mask_stages(config: SamConfig, params: Any, mask: Any) -> dict[str, jax.Array]:
    """Return what every part of the mask prompt's stack returns, in the dtype of `config`.

    Args:
      config: settings of the decoder.
      params: the parameters of `MaskDownscaling`.
      mask: logits.
    """
    run = jax.jit(lambda params, mask: MaskDownscaling(config).apply(params, mask, capture_intermediates=True))
    result, state = run(*_of_dtype(({"params": params}, mask), config))
    parts = _by_path(state["intermediates"], "mask_downscaling")
    return parts | {"mask_downscaling": result}


def _of_dtype(tree: Any, config: SamConfig) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x, config.dtype), tree)


def _by_path(intermediates: Any, path: str = "") -> dict[str, Any]:
    outputs = {}
    for name, value in intermediates.items():
        if name != "__call__":
            outputs |= _by_path(value, f"{path}/{name}" if path else name)
        elif path:
            (output,) = value
            named = zip(TWO, output, strict=True) if isinstance(output, tuple) else [("", output)]
            outputs |= {path + which: array for which, array in named}
    return outputs
