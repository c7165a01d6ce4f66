"""Checkpoints that exist only when their manifest does.

`storage` moves bytes, `tensorfile` and `manifest` give them a form that carries its own digests, `rounds` and
`ownership` decide who may write, `save` and `load` are the two things that all ranks do together.
"""
