"""The definition of the decoder: plain Flax modules, for one image and one prompt set. `model` puts them together.

The room may use `prompts`, `config` and `errors`.
"""
