"""The leader's book of strikes: incidents of all jobs in, one guarded write out, and the mark on the nodes.

Nothing here is needed to be right: a new leader reads the ConfigMap and enters every job's incidents again.
"""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress

from rerail_operator.core.plan import Plan
from rerail_operator.core.strikes import (
    Account,
    Book,
    Verdict,
    account_of,
    avoided_nodes,
    entered,
    in_words,
    told,
    verdicts,
)
from rerail_operator.core.world import World
from rerail_operator.shell.clock import Clock
from rerail_operator.shell.cluster import (
    AlreadyExists,
    Cluster,
    ClusterError,
    Conflict,
    Kind,
    NotFound,
    Object,
)
from rerail_operator.shell.fleet import Fleet
from rerail_operator.shell.keys import JobKey
from rerail_operator.shell.leader import Leading
from rerail_operator.shell.strikes.notice import NAMESPACE, event, sentence
from rerail_operator.shell.strikes.record import NAME, book_of, data_of, fresh

log = logging.getLogger(__name__)

LOOK_SECONDS = 10.0
"""How soon it is noticed that a person cleared a node, that nodes came or went, that strikes are over."""
SOON_SECONDS = 0.5
"""Incidents of many jobs come together: one write tells them all."""
PATIENCE_SECONDS = 5.0


class StrikeKeeper:
    """`passed` goes into the engine's `on_pass`; one `step` before the first pass, `run` from then on."""

    def __init__(
        self, cluster: Cluster, namespace: str, fleet: Fleet, leadership: Leading, clock: Clock
    ) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._fleet = fleet
        self._leadership = leadership
        self._clock = clock
        self._stored: Object | None = None
        self._written: Book = {}  # what `_stored` says
        self._book: Book = {}
        self._accounts: dict[str, Account] = {}  # by job UID; gone jobs until what they say is written
        self._told: dict[str, tuple[object, ...]] = {}
        self._news = asyncio.Event()
        self._trouble = ""

    def passed(self, key: JobKey, world: World, plan: Plan) -> None:
        """Take over what this job's incidents say, where that is new. Cheap: called in every pass."""
        if world.job is None:
            return
        if not world.job.status.incidents:
            return
        news = told(world.job, world.nodes, self._clock.now())
        if news != self._told.get(world.uid):
            self._told[world.uid] = news
            self._accounts[world.uid] = account_of(world.job, world.nodes)
            self._news.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._pause()
            await self.step()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                await self._news.wait()
        except TimeoutError:
            return
        await asyncio.sleep(SOON_SECONDS)

    async def step(self) -> None:
        """One look: what stands in the ConfigMap, what is new, one write, and the mark on the nodes."""
        self._news.clear()
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._read()
                if self._leadership.is_leader:
                    await self._write()
        except (Conflict, AlreadyExists):
            self._news.set()  # somebody else wrote: enter the accounts into what stands there now
        except (ClusterError, TimeoutError) as error:
            # What cannot be written now is in the jobs' statuses: it counts already, and is written later.
            self._book = entered(self._book, self._accounts.values(), self._clock.now())
            self._tell(f"{type(error).__name__}: {error}")
        else:
            self._tell("")
        await self._announce(self._mark())

    async def _read(self) -> None:
        try:
            found = await self._cluster.get(Kind.CONFIG_MAP, self._namespace, NAME)
        except NotFound:
            self._stored, self._written = None, {}
        else:
            if self._stored is None or _version(found) != _version(self._stored):
                self._stored, self._written = found, book_of(found)
        self._book = entered(self._written, self._accounts.values(), self._clock.now())

    async def _write(self) -> None:
        """Nothing, where the ConfigMap says all of it already."""
        written = tuple(self._accounts)
        if self._book != self._written:
            before = self._stored or fresh(self._namespace)
            body = {**before, "data": data_of(self._book)}
            if self._stored is None:
                await self._cluster.create(Kind.CONFIG_MAP, self._namespace, body)
            elif body["data"] != before.get("data"):  # equal where all there is to add finds no room
                await self._cluster.replace(Kind.CONFIG_MAP, self._namespace, body)
        live = {raw["metadata"]["uid"] for raw in self._fleet.jobs()}
        for uid in written:
            if uid not in live:
                del self._accounts[uid]
                self._told.pop(uid, None)

    def _mark(self) -> dict[str, Verdict]:
        """Tell placement, and the log where that changes anything; the nodes that are avoided from now on."""
        found = verdicts(self._book, self._fleet.nodes({}), self._clock.now())
        avoided, before = avoided_nodes(found), self._fleet.struck
        struck = {node: found[node] for node in sorted(avoided.keys() - before.keys())}
        for node, verdict in struck.items():
            log.warning("node %s is %s", node, sentence(node, verdict))
        for node in sorted(before.keys() - avoided.keys()):
            left = found.get(node)
            why = f"{in_words(left)}, {left.state.value}" if left else "its strikes are over"
            log.info("node %s is no longer avoided: %s", node, why)
        if avoided != before:
            self._fleet.mark_struck(avoided)
        return struck

    async def _announce(self, struck: Mapping[str, Verdict]) -> None:
        """For people: what cannot be posted is in the log."""
        if not self._leadership.is_leader:
            return
        with suppress(ClusterError, TimeoutError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                for node, verdict in struck.items():
                    with suppress(AlreadyExists):
                        await self._cluster.create(
                            Kind.EVENT, NAMESPACE, event(node, verdict, self._clock.now())
                        )

    def _tell(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            log.error("strikes against nodes are not kept in ConfigMap %s: %s", NAME, trouble)
        self._trouble = trouble


def _version(config_map: Object) -> str:
    return str(config_map["metadata"].get("resourceVersion", ""))
