"""Every class of failure as something that can be dealt to a village, by the sign that it shows.

The list is held against the table of failures: a new sign there needs its blow here.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

from rerail_api.contract import ExitCode
from rerail_operator.core.taxonomy import Sign
from rerail_operator.shell.cluster import Kind

from .agent import StandIn
from .village import Village

BACK_AFTER_SECONDS = 30.0
PARTITION_SECONDS = 45.0
PARTITION_SECONDS_OF_MANY_LEADERS = 120.0
"""Longer than a few leaders in a row need to be sure of a silence."""


@dataclass(frozen=True, slots=True)
class Victim:
    """Where a blow falls: an agent whose ranks run, and the luck of the draw."""

    village: Village
    agent: StandIn
    rng: random.Random


Deal = Callable[[Victim], None]


def _exits(code: ExitCode, contract: bool = True) -> Deal:
    return lambda victim: victim.agent.rank_ends(exit_code=int(code), contract=contract)


def _signalled(victim: Victim) -> None:
    victim.agent.rank_ends(signal=victim.rng.choice((6, 7, 9, 11)))


def _crashes(victim: Victim) -> None:
    victim.agent.rank_ends(exit_code=1, exception=f"Error{victim.rng.randrange(10**6)}")


def _out_of_memory(victim: Victim) -> None:
    victim.village.container_ends(victim.agent, 137, "OOMKilled")


def _container_ends(victim: Victim) -> None:
    victim.village.container_ends(victim.agent, victim.rng.choice((1, 137)), "Error")


def _node_dies(victim: Victim) -> None:
    node = victim.agent.node
    victim.village.lose_node(node, victim.rng.choice((8.0, 12.0)))
    victim.village.later(BACK_AFTER_SECONDS, victim.village.node_returns, node)


def _partition(victim: Victim) -> None:
    """The node reaches nobody while its ranks run on; it comes back later with its zombies."""
    victim.village.partition(victim.agent.node)
    lasts = PARTITION_SECONDS_OF_MANY_LEADERS if victim.village.troubled else PARTITION_SECONDS
    victim.village.later(lasts, victim.village.heal, victim.agent.node)


def _power_fails(victim: Victim) -> None:
    """As `_node_dies`, but peers know before the API server does."""
    victim.village.lose_node(victim.agent.node)
    victim.village.later(PARTITION_SECONDS, victim.village.node_returns, victim.agent.node)


def _frozen(victim: Victim) -> None:
    """SIGSTOP to the agent and its ranks; they wake in the middle of a later round."""
    victim.agent.frozen = True
    victim.village.later(PARTITION_SECONDS, setattr, victim.agent, "frozen", False)


def _hangs(victim: Victim) -> None:
    """A rank never enters the collective in which the others wait; everybody talks on."""
    victim.village.program.hung = victim.agent.round


def _vanishes(victim: Victim) -> None:
    node = victim.agent.node
    victim.village.kubelet_dies(victim.agent)
    victim.village.later(BACK_AFTER_SECONDS, victim.village.kubelet_returns, node)


def _stuck(victim: Victim) -> None:
    """A rank dies and leaves a process that no signal ends."""
    victim.agent.unkillable = True
    victim.agent.rank_ends(signal=9)


def _device_fails(victim: Victim) -> None:
    """The kubelet calls a GPU of the pod bad, and a rank dies of it."""
    device = {"name": "nvidia.com/gpu", "resources": [{"resourceID": "GPU-7", "health": "Unhealthy"}]}
    trainer = {"name": "trainer", "state": {"running": {}}, "allocatedResourcesStatus": [device]}
    victim.village.cluster.set_pod_status(victim.agent.pod_uid, {"containerStatuses": [trainer]})
    victim.agent.rank_ends(signal=7)


def _disrupted(reason: str, cordon: bool) -> Deal:
    def deal(victim: Victim) -> None:
        village, agent = victim.village, victim.agent
        condition = {"type": "DisruptionTarget", "status": "True", "reason": reason}
        village.cluster.set_pod_status(agent.pod_uid, {"conditions": [condition]})
        village.spawn(_evict(village, agent, cordon))

    return deal


async def _evict(village: Village, agent: StandIn, cordon: bool) -> None:
    if cordon:
        await village.cluster.patch(Kind.NODE, "", agent.node, {"spec": {"unschedulable": True}})
    await village.cluster.delete(Kind.POD, "default", agent.pod, uid=agent.pod_uid)
    await asyncio.sleep(BACK_AFTER_SECONDS)
    await village.cluster.patch(Kind.NODE, "", agent.node, {"spec": {"unschedulable": False}})


def _deleted(victim: Victim) -> None:
    agent = victim.agent
    victim.village.spawn(victim.village.cluster.delete(Kind.POD, "default", agent.pod, uid=agent.pod_uid))


BLOWS: dict[Sign, Deal] = {
    Sign.POD_DELETED: _deleted,
    Sign.POD_PREEMPTED: _disrupted("PreemptionByScheduler", cordon=False),
    Sign.POD_DRAINED: _disrupted("EvictionByEvictionAPI", cordon=True),
    Sign.NODE_GONE: _node_dies,
    Sign.AGENT_SILENT: _partition,
    Sign.NODE_UNREACHABLE: _power_fails,
    Sign.FROZEN: _frozen,
    Sign.CONTAINER_GONE: _vanishes,
    Sign.DEVICE_BAD: _device_fails,
    Sign.CANNOT_STOP: _stuck,
    Sign.OUT_OF_MEMORY: _out_of_memory,
    Sign.CONTAINER_ENDED: _container_ends,
    Sign.SIGNALLED: _signalled,
    Sign.RETRY_IN_PLACE: _exits(ExitCode.RETRY_IN_PLACE),
    Sign.LEAVE_NODE: _exits(ExitCode.LEAVE_NODE),
    Sign.NON_FINITE: _exits(ExitCode.NON_FINITE),
    Sign.BAD_DATA_SHARD: _exits(ExitCode.BAD_DATA_SHARD),
    Sign.WATCHDOG: _exits(ExitCode.HANG),
    Sign.RENDEZVOUS_FAILED: _exits(ExitCode.RENDEZVOUS_FAILED),
    Sign.OTHER_EXIT: _crashes,
    Sign.NO_STEP: _hangs,
}
"""After these the job goes on."""

FATAL: dict[Sign, Deal] = {
    Sign.BAD_CONFIG: _exits(ExitCode.BAD_CONFIG),
    Sign.DATA_MISMATCH: _exits(ExitCode.DATA_MISMATCH),
    Sign.NO_CHECKPOINT: _exits(ExitCode.NO_CHECKPOINT),
    Sign.PROGRAM_GIVES_UP: lambda victim: victim.agent.rank_ends(exit_code=67, contract=True),
    Sign.DO_NOT_REQUEUE: _exits(ExitCode.DO_NOT_REQUEUE),
}
"""These end it, with their evidence."""
