"""A rendezvous port for each round: free, fresh, and held until the ranks start."""

from __future__ import annotations

import errno
import random
import socket
from collections import deque

FIRST_PORT = 20000
# from here on kube-proxy may divert traffic for NodePort services, which bites under hostNetwork
NODE_PORTS = 30000
REMEMBERED = 16
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
_RANGE_FILE = "/proc/sys/net/ipv4/ip_local_port_range"


class PortChoice:
    """Offers ports below the ephemeral range, none of the last 16, and holds the current one."""

    def __init__(self, range_file: str = _RANGE_FILE) -> None:
        self._range_file = range_file
        self._recent: deque[int] = deque(maxlen=REMEMBERED)
        self._held: socket.socket | None = None

    def offer(self) -> int:
        """A free port, held by a bound socket until `release`, so that no neighbour picks it meanwhile."""
        self.release()
        for port in self._candidates():
            if port not in self._recent and self._hold(port):
                self._recent.append(port)
                return port
        # all taken: whatever the kernel gives is better than none
        port = int(self._held.getsockname()[1]) if self._hold(0) and self._held else FIRST_PORT
        self._recent.append(port)
        return port

    def release(self) -> None:
        """Give the port up to the rank that will listen on it."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def _candidates(self) -> list[int]:
        ports = list(range(FIRST_PORT, max(self._ceiling(), FIRST_PORT)))
        random.shuffle(ports)
        return ports

    def _ceiling(self) -> int:
        try:
            with open(self._range_file, encoding="ascii") as file:
                low = int(file.read().split()[0])
        except (OSError, ValueError, IndexError):
            return NODE_PORTS
        # where the ephemeral range swallows ours, a port that is free now is still the best there is
        return min(low, NODE_PORTS) if low > FIRST_PORT + REMEMBERED else NODE_PORTS

    def _hold(self, port: int) -> bool:
        self._held = bind_everywhere(port)
        return self._held is not None


def bind_everywhere(port: int) -> socket.socket | None:
    """A TCP socket bound on all addresses, of both families if there are; None when the port is taken."""
    for family, host in ((socket.AF_INET6, "::"), (socket.AF_INET, "")):
        try:
            bound = socket.socket(family, socket.SOCK_STREAM)
        except OSError:
            continue
        try:
            if family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            bound.bind((host, port))
            return bound
        except OSError as error:
            bound.close()
            if error.errno not in _NO_IPV6:
                return None
    return None
