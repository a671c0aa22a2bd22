"""Every object of an image without a prompt: the grid, crops, statistics, filters, NMS.

It may use `images` and what stands below it.
"""
