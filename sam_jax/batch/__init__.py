"""Many prompt sets and images: the one jitted function, padding to few sizes, meshes, choosing among masks.

`decode` is the bottom of the room, `sharding` stands on it, and `predict` on both. The room may use `fast` and what
stands below it.
"""
