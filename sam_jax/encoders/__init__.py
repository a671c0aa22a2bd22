"""The image encoders, and their settings. One interface: `encoder.apply(variables, frame)` makes an image embedding.

The room may use `decoder` (its layers) and what stands below it.
"""
