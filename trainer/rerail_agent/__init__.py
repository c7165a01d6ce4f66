"""PID 1 of a worker container: starts ranks, reports, stops them, starts them again in place.

Standard library and `rerail_api.contract` only: it travels as one zipapp into images
that hold nothing of ours.
The protocol that it speaks is the docstring of `rerail_api/contract.py`.
"""
