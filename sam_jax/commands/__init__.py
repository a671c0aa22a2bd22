"""The `sam-jax` command: cli.py and one file for each subcommand, what it prints and what it writes.

This is the top floor: it may use every other room.
"""
