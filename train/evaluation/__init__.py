"""How good a checkpoint is: metrics, protocols, reports.

The room may use `train.user` and `train.data`.
"""
