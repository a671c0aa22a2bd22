"""What learns: losses, optimizer, LoRA, heads, the state, the step and the loop.

The room may use `train.evaluation` (its metrics) and what stands below it.
"""
