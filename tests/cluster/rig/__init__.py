"""A whole real Kubernetes on this machine, built from Go modules: see README.md."""

from .api import ApiClient, ApiError
from .components import Options
from .controlplane import ControlPlane
from .errors import CommandFailed, Missing, RigError
from .process import until

__all__ = [
    "ApiClient",
    "ApiError",
    "CommandFailed",
    "ControlPlane",
    "Missing",
    "Options",
    "RigError",
    "until",
]
