"""What lies on disk: checkpoint folders and their manifest, stores of embeddings, exported programs.

It may use `sam_jax.convert`, `images` and what stands below them.
"""
