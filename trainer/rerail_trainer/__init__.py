"""The training container of Rerail: a pre-training loop whose restarts are exact.

Torch and numpy only. Nothing here knows the operator; what both must agree on is `rerail_api.contract`.
"""
