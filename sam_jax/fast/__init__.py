"""The decoder's sums in fewer operations. Each form equals the plain modules to rounding.

`image_form` is what the forms share; `absorbed` and `low_rank` are the forms. The room may use `decoder` and what
stands below it.
"""
