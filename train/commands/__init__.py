"""The subcommands `finetune` and `evaluate`, and how the small checkpoint that ships is made.

The room may use all others of `train`.
"""
