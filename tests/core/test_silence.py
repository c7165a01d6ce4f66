"""Lost or only silent: what peers found, what vetoes it, and how long many silences are put down to our network."""

import pytest

from rerail_api.contract import AgentState
from rerail_api.status import IncidentClass, Stage
from rerail_operator.core.world import Probe

from .builders import Scene, after, running
from .test_faults import incident, restart
from .test_gathering import between_rounds
from .wants import Want, check

K = IncidentClass
WAITS = Want("NodesStarting", says="nodes run their ranks; the agent of")
PRODUCTIVE = {"ledger.stage": "productive"}
HELD = Want("NodesStarting", phase="Starting")


def found(scene: Scene, rank: int = 1, asked: int = 2, **outcomes: int) -> Scene:
    """Peers were asked about that node rank, silent since noon."""
    return scene.silent(rank).agent(rank, probe=Probe(asked, **outcomes, at=after(6)))


def many(count: int, nodes: int = 8) -> Scene:
    """So many agents fall silent at once, and peers reach none of them."""
    scene = running(nodes)
    for rank in range(count):
        scene = found(scene, rank, timed_out=2)
    return scene


ONE: dict[str, tuple[Scene, Want]] = {
    "a machine that two peers cannot reach is a lost node, though it says that it is ready": (
        found(running(4), timed_out=2).later(8),
        restart(
            K.NODE_LOSS,
            False,
            1,
            start_time=after(0),
            says="node n1 is lost: the agent of gpt-c0ffe-1-1 has been silent for 8 s and 2 peers cannot reach",
        ),
    ),
    "where there is one peer, its word is enough": (
        found(running(2), asked=1, timed_out=1).later(8),
        restart(K.NODE_LOSS, False, 1, says="1 peer cannot reach it; its log is gone with it"),
    ),
    "where there are two, the word of one is not": (
        found(running(4), timed_out=1).later(19),
        WAITS,
    ),
    "nor is anybody's before three beats were missed": (found(running(4), timed_out=2).later(5), WAITS),
    "connects that its machine refuses mean that the container is gone, and the node is well": (
        found(running(4), refused=2).later(8),
        Want(
            "Restarting",
            intent=True,
            says="the container of gpt-c0ffe-1-1 is gone: silent for 8 s, and n1 refused the connect of 2 peers",
            status={**incident(K.CONTAINER_LOSS, True, 1), "excluded_nodes": ()},
        ),
    ),
    "connects that are taken and never answered mean a frozen container": (
        found(running(4), mute=2).later(8),
        restart(K.CONTAINER_LOSS, False, 1, says="is frozen: silent for 8 s, and it gave 2 peers no answer"),
    ),
    "a machine that takes one connect of two is not lost": (
        found(running(4), mute=1, timed_out=1).later(8),
        restart(K.CONTAINER_LOSS, False, 1, says="is frozen"),
    ),
    "peers that do not agree decide nothing": (found(running(4), refused=1, timed_out=1).later(19), WAITS),
    "nor does a peer that could not try": (found(running(4), timed_out=1).later(19), WAITS),
    "an agent that peers reach is only silent": (found(running(4), reached=2).later(19), WAITS),
    "and people can read it": (
        found(running(4), reached=2).later(19),
        Want("NodesStarting", says="the agent of gpt-c0ffe-1-1 is not heard, though 2 peers reached it"),
    ),
    "one that one peer reaches, too": (found(running(4), reached=1, timed_out=1).later(19), WAITS),
    "but not for ever": (
        found(running(4), reached=2).later(20),
        restart(K.NETWORK, False, 1, says="has been silent for 20 s, though 2 peers reached it"),
    ),
    "what peers could not agree on is told": (
        found(running(4), refused=1, timed_out=1).later(20),
        restart(K.NETWORK, False, 1, says="of 2 peers, 1 could not reach it, 1 was refused"),
    ),
    "a step that moves since then vetoes what peers found": (
        found(running(4), timed_out=2).later(60).steps(40, at=55),
        Want("AllRanksRunning", phase="Running", says="1 of 4 agents are not heard", status=PRODUCTIVE),
    ),
    "a step that was made before does not": (
        found(running(4), timed_out=2).later(8).steps(40, at=1),
        restart(K.NODE_LOSS, False, 1),
    ),
    "what the kubelet tells of the container goes before what peers found": (
        found(running(4), refused=2).container(1, 137, "OOMKilled").later(8).written().later(1),
        restart(K.OUT_OF_MEMORY, True, 1),
    ),
    "what the API server tells of the node goes before it, too": (
        found(running(4), refused=2).node("n1", ready=None).later(8),
        restart(K.NODE_LOSS, False, 1, says="node n1 is not ready"),
    ),
    "an agent whose ranks are done may be silent": (
        found(running(2), timed_out=2).agent(1, state=AgentState.DONE).later(60),
        Want("AllRanksRunning"),
    ),
}

MANY: dict[str, tuple[Scene, Want]] = {
    "three at once are three lost nodes": (many(3).later(8), restart(K.NODE_LOSS, False, 0)),
    "four of eight are our own network, whatever peers find": (many(4).later(119), HELD),
    "which is said, and no second is booked before it is known whether the ranks ran": (
        many(4).later(60),
        Want("NodesStarting", says="it is taken for our own network", status={"ledger.wall_seconds": 0}),
    ),
    "when they are heard again, they ran": (
        many(4).later(60).written().all(connected=True, probe=None).later(30),
        Want("AllRanksRunning", status={"ledger.productive_seconds": 90}),
    ),
    "when they are not, all of it was detection": (
        many(4).later(60).written().later(60),
        Want("Restarting", intent=True, status={"ledger.lost_seconds": {Stage.DETECTION: 120}}),
    ),
    "for two minutes": (
        many(4).later(120),
        restart(
            K.NODE_LOSS, False, 0, says="so many were silent at once that it was waited for, 120 s"
        ),
    ),
    "that the API server finds them not ready needs no waiting": (
        many(4).node("n0", ready=None).later(8),
        restart(K.NODE_LOSS, False, 0, says="node n0 is not ready"),
    ),
    "nodes that are not ready are not counted among the silent": (
        many(4).node("n3", ready=False).later(8),
        restart(K.NODE_LOSS, False, 0, says="node n0 is lost"),
    ),
    "nor are pods that were told to go": (
        many(4).pod(3, deleting=True).written().later(8),
        Want("Restarting", intent=True),
    ),
    "agents that peers reach count among the silent": (
        found(many(3), 3, reached=2).later(60),
        HELD,
    ),
    "five per cent of a large gang are no network": (many(5, nodes=100).later(8), restart(K.NODE_LOSS, False, 0)),
    "six of a hundred are": (many(6, nodes=100).later(60), HELD),
    "while nobody at all is heard a restart would help nobody: ten minutes": (many(8).later(599), HELD),
    "and no more": (
        many(8).later(600),
        restart(K.NODE_LOSS, False, 0, says="it was waited for, 600 s"),
    ),
}  # fmt: skip

BETWEEN: dict[str, tuple[Scene, Want]] = {
    "a container that is gone is made anew on its node": (
        between_rounds(found(running(2), asked=1, refused=1).later(8)),
        Want("PlacingPods", ("delete p1-1", "join p1-0 to round 2", "create 1 on n1 in round 2")),
    ),
    "a node that peers cannot reach is left": (
        between_rounds(found(running(2), asked=1, timed_out=1).later(8)),
        Want("PlacingPods", ("delete p1-1", "join p1-0 to round 2", "create 1 on n2 in round 2")),
    ),
}


@pytest.mark.parametrize("sentence", [*ONE, *MANY, *BETWEEN])
def test_silence(sentence: str) -> None:
    check(*{**ONE, **MANY, **BETWEEN}[sentence])


def test_from_the_first_suspicion_to_the_end_of_patience_every_look_says_the_same() -> None:
    for seconds in range(6, 120):
        check(many(5).later(seconds), HELD)
