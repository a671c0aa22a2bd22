"""The frame that an image encoder takes."""

from jaxtyping import Array, Float

from sam_jax.errors import describe


def check_frame(image: Float[Array, "height width 3"], image_size: tuple[int, int]) -> None:
    """Raise a ValueError for a frame of another size than the encoder's `image_size`."""
    if image.shape != (*image_size, 3):
        raise ValueError(f"The image must have the shape {(*image_size, 3)}, got {describe(image)}.")
