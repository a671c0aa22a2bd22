"""Images with the true masks of their objects: COCO files, label images, drawn scenes; and batches of them.

The room may use `sam_jax`'s rooms up to `files`.
"""
