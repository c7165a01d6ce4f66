"""`rerail run`: one job on this machine, with the operator's own core, coordinator and agent.

The cluster is held in memory, nodes are names, and pods are processes. What is real: every decision, the
agent's protocol, the agent and the ranks. What is not: images, mounts and placement.
"""
