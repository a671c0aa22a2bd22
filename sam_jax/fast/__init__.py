"""The decoder's sums in fewer operations or bytes. Each form equals the plain modules to rounding.

`image_form` is what the forms share; `absorbed`, `low_rank` and `fused` are the forms. The last one is made of
`kernels`: `kernels_tpu`, and `kernels_cuda` for GPUs. `platforms` decides what is for a CPU alone. The room may use
`decoder` and what stands below it.
"""
