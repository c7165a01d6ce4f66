"""What the cluster itself says against a pod's devices or its node, in words.

It interrupts nothing: such words come and go, and a gang is dear. Where something has failed, they say why.
"""

from .world import Nodes, Pod


def said_against(nodes: Nodes, pod: Pod | None, node_name: str | None) -> str:
    """What speaks against the devices of `pod` and against its node; "" where nobody says anything."""
    words = []
    if pod is not None and pod.bad_device:
        words.append(f"the kubelet says that {pod.bad_device} of {pod.name} is unhealthy")
    node = nodes.get(node_name) if node_name else None
    if node is not None and node.trouble:
        words.append(f"node {node.name} has the condition {node.trouble}")
    return ", and ".join(words)
