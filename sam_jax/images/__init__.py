"""Between an image's pixels and the input frame: reading, preprocessing, resizing back, full-size masks, drawing.

It may use `batch` and what stands below it.
"""
