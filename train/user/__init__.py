"""The simulated user: clicks, first prompts, corrections.

The room may use `sam_jax`'s rooms up to `files`, and `train.data`.
"""
