"""Non-maximum suppression of boxes, exactly as torchvision's on a CPU, in one program of fixed size."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from sam_jax.prompts import AnyArray


@jax.jit
def box_nms(
    boxes: Float[AnyArray, "n 4"],
    scores: Float[AnyArray, " n"],
    valid: Bool[AnyArray, " n"],
    iou_threshold: float | Float[AnyArray, ""],
) -> tuple[Int[Array, " n"], Int[Array, ""]]:
    """Return the boxes that stay, in falling order of their scores, and how many they are.

    A box stays unless one that stays with a better score overlaps it by an IoU above the threshold; of equal scores
    the first wins. A box of a single row or column has no area: it neither suppresses nor is suppressed
    (`torchvision/csrc/ops/cpu/nms_kernel.cpp`).

    Args:
      boxes: (x0, y0, x1, y1).
      scores: one for each box.
      valid: False for boxes that are not there.
      iou_threshold: the largest IoU of two boxes that stay.

    Returns:
      Indices, of which the first ones count, and their number.
    """
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True)
    sorted_boxes = boxes[order]
    area = (sorted_boxes[:, 2] - sorted_boxes[:, 0]) * (sorted_boxes[:, 3] - sorted_boxes[:, 1])

    # One turn for each box that stays: they are few.
    def visit(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        left, kept, number = state
        best = jnp.argmax(left)
        box = sorted_boxes[best]
        low, high = jnp.maximum(box[:2], sorted_boxes[:, :2]), jnp.minimum(box[2:], sorted_boxes[:, 2:])
        sides = jnp.maximum(high - low, 0)
        shared = sides[:, 0] * sides[:, 1]
        union = area[best] + area - shared
        # Two boxes without an area have the IoU 0/0, which is above nothing.
        suppressed = (union > 0) & (shared / jnp.where(union > 0, union, 1) > iou_threshold)
        left = (left & ~suppressed).at[best].set(False)
        return left, kept.at[number].set(order[best]), number + 1

    start = valid[order], jnp.zeros_like(order), jnp.zeros((), jnp.int32)
    _, kept, number = lax.while_loop(lambda state: state[0].any(), visit, start)
    return kept, number
