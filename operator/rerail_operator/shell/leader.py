"""Who leads: one operator at a time, elected by a Lease, told apart by term.

The algorithm is the one of Kubernetes' own controllers: the holder renews; a candidate takes the Lease once
it has seen no change of it for a lease's length on its own clock, so clocks need not agree.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from rerail_api.contract import GROUP, LABEL_MANAGED, MANAGED_BY

from .clock import Clock
from .cluster import AlreadyExists, Cluster, ClusterError, Conflict, Kind, NotFound, Object, Unavailable

log = logging.getLogger(__name__)

ANNOTATION_ADDRESS = f"{GROUP}/address"
# Terms begin here, in seconds: see `next_term`.
TERM_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class Leading(Protocol):
    """What everybody may ask of leadership."""

    @property
    def is_leader(self) -> bool: ...

    @property
    def term(self) -> int:
        """Rises with every leader; agents refuse a lower one than they have seen."""
        ...

    @property
    def leader_address(self) -> str:
        """host:port of the leader's coordinator; "" when nobody is known to lead."""
        ...


class AlwaysLeader:
    """`rerail run` and tests: nobody else is there."""

    is_leader = True
    term = 1
    leader_address = ""


@dataclass(frozen=True, slots=True)
class LeaseTimes:
    """Seconds. The holder gives up `deadline` after its last renewal, well before others may take over."""

    lease: float = 9.0
    deadline: float = 6.0
    retry: float = 2.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """Where the Lease is, and who asks for it."""

    namespace: str
    lease: str
    holder: str  # unique per process
    address: str  # host:port of this process' coordinator

    @classmethod
    def of_pod(cls, namespace: str, lease: str, pod: str, address: str) -> "Candidate":
        return cls(namespace, lease, f"{pod}_{secrets.token_hex(4)}", address)


@dataclass(frozen=True, slots=True)
class Claim:
    """What a Lease says."""

    holder: str
    renewed: str
    term: int
    seconds: float
    address: str


def next_term(seen: int, now: datetime) -> int:
    """The term of a new leader: above every one seen, and at least the seconds since 2026.

    The clock alone makes terms rise even when somebody deletes the Lease and with it the count: agents that
    have seen a higher term would refuse every later leader for ever. Fits the field's 32 bits until 2094.
    """
    return max(seen + 1, int((now - TERM_EPOCH).total_seconds()))


class Leadership:
    """`run` campaigns, then renews. A lost Lease is final: `on_lost(why)` ends the process."""

    def __init__(
        self,
        cluster: Cluster,
        clock: Clock,
        candidate: Candidate,
        on_lost: Callable[[str], None],
        times: LeaseTimes | None = None,
    ) -> None:
        self._cluster = cluster
        self._clock = clock
        self._candidate = candidate
        self._on_lost = on_lost
        self._times = times or LeaseTimes()
        self._lease: Object | None = None
        self._claim: Claim | None = None
        self._claim_seen_at = 0.0
        self._renewed_at: float | None = None  # None: not leading
        self._trouble = ""
        self._elected = asyncio.Event()
        self.leading_since: datetime | None = None
        self.lost = False

    @property
    def is_leader(self) -> bool:
        """False as soon as others may have taken over, even if this process has not noticed yet."""
        if self._renewed_at is None:
            return False
        return self._clock.monotonic() - self._renewed_at < self._times.lease

    @property
    def term(self) -> int:
        return self._claim.term if self._claim is not None else 0

    @property
    def leader_address(self) -> str:
        if self._claim is None or not self._claim.holder or self._expired(self._claim):
            return ""
        return self._claim.address

    async def wait_elected(self) -> None:
        await self._elected.wait()

    async def run(self) -> None:
        """Until cancelled or lost."""
        while not self.lost:
            await self.step()
            await asyncio.sleep(self._pause())

    async def step(self) -> None:
        """One attempt to acquire or renew."""
        started = self._clock.monotonic()
        if self._overdue(started):
            self._lose(self._why_overdue())
            return
        try:
            async with asyncio.timeout(self._patience(started)):
                await self._attempt(started)
        except TimeoutError:
            self._lease = None
            self._note_trouble(Unavailable("the API server did not answer in time"))
        except (Conflict, AlreadyExists):
            self._lease = None  # changed under us: the next step reads it again
        except ClusterError as error:
            self._lease = None
            self._note_trouble(error)
        else:
            self._trouble = ""
        if self._overdue(self._clock.monotonic()):
            self._lose(self._why_overdue())

    async def release(self) -> None:
        """Give the Lease back on a clean shutdown, so that a standby takes over at its next look."""
        if self._renewed_at is None:
            return
        self._renewed_at = None
        where = self._candidate
        try:
            self._observe(await self._cluster.get(Kind.LEASE, where.namespace, where.lease))
            if self._claim is not None and self._lease is not None and self._claim.holder == where.holder:
                given = self._record(self._lease, "", self.term)
                await self._cluster.replace(Kind.LEASE, where.namespace, given)
        except ClusterError as error:
            log.info("the Lease could not be given back, it runs out by itself: %s", error)

    # -- inside -------------------------------------------------------------------------------------------

    async def _attempt(self, started: float) -> None:
        where = self._candidate
        if self._lease is None:
            try:
                self._observe(await self._cluster.get(Kind.LEASE, where.namespace, where.lease))
            except NotFound:
                await self._create(started)
                return
        lease, claim = self._lease, self._claim
        if lease is None or claim is None:
            return
        if claim.holder == where.holder:
            term = claim.term
        elif self._renewed_at is not None:
            self._lose(f"the Lease is held by {claim.holder or 'nobody'} now")
            return
        elif claim.holder and not self._expired(claim):
            self._lease = None  # a standby looks afresh every time
            return
        else:
            term = next_term(claim.term, self._clock.now())
        renewed = self._record(lease, where.holder, term)
        self._hold(await self._cluster.replace(Kind.LEASE, where.namespace, renewed), started)

    async def _create(self, started: float) -> None:
        where = self._candidate
        if self._renewed_at is None and self._claim is not None and not self._expired(self._claim):
            return  # somebody deleted the Lease; whoever held it may still believe in it
        fresh: Object = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {}}
        term = self.term if self._renewed_at is not None else next_term(self.term, self._clock.now())
        lease = self._record(fresh, where.holder, term)
        self._hold(await self._cluster.create(Kind.LEASE, where.namespace, lease), started)

    def _observe(self, lease: Object) -> None:
        claim = _read(lease)
        if claim != self._claim:
            self._claim_seen_at = self._clock.monotonic()
        self._lease, self._claim = lease, claim

    def _hold(self, lease: Object, started: float) -> None:
        """The server has written us in; the lease counts from before the request."""
        self._observe(lease)
        if self._renewed_at is None:
            self.leading_since = self._clock.now()
            log.info("leading with term %d as %s", self.term, self._candidate.holder)
        self._renewed_at = started
        self._elected.set()

    def _lose(self, why: str) -> None:
        if self._renewed_at is None:
            return
        self._renewed_at = None
        self.lost = True
        self._on_lost(why)

    def _expired(self, claim: Claim) -> bool:
        return self._clock.monotonic() - self._claim_seen_at >= claim.seconds

    def _overdue(self, now: float) -> bool:
        return self._renewed_at is not None and now - self._renewed_at >= self._times.deadline

    def _why_overdue(self) -> str:
        return f"not renewed for {self._times.deadline:g} s: {self._trouble or 'this process stood still'}"

    def _patience(self, started: float) -> float:
        """Seconds that one attempt may take: a leader's never reaches past its deadline."""
        if self._renewed_at is None:
            return self._times.deadline
        return max(0.01, self._renewed_at + self._times.deadline - started)

    def _pause(self) -> float:
        if self._renewed_at is not None and self._lease is None:
            return min(0.2, self._times.retry)  # a renewal went wrong: there is no time to lose
        if self._renewed_at is None and self._claim is not None and self._claim.holder:
            left = self._claim_seen_at + self._claim.seconds - self._clock.monotonic()
            return min(self._times.retry, max(0.05, left))
        return self._times.retry

    def _note_trouble(self, error: ClusterError) -> None:
        trouble = f"{type(error).__name__}: {error}"
        if trouble != self._trouble:
            log.warning("the Lease %s cannot be read or renewed: %s", self._candidate.lease, trouble)
        self._trouble = trouble

    def _record(self, lease: Object, holder: str, term: int) -> Object:
        """The Lease as it is to be written: `lease` keeps what others put there, and its resourceVersion."""
        now = self._clock.now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        where = self._candidate
        metadata = lease["metadata"]
        spec = lease.get("spec") or {}
        gained = spec.get("acquireTime") if spec.get("holderIdentity") == holder else now
        return {
            **lease,
            "metadata": {
                **metadata,
                "name": where.lease,
                "namespace": where.namespace,
                "labels": {**(metadata.get("labels") or {}), LABEL_MANAGED: MANAGED_BY},
                "annotations": {**(metadata.get("annotations") or {}), ANNOTATION_ADDRESS: where.address},
            },
            "spec": {
                **spec,
                "holderIdentity": holder,
                "leaseDurationSeconds": max(1, round(self._times.lease)),
                "acquireTime": gained or now,
                "renewTime": now,
                "leaseTransitions": term,
            },
        }


def _read(lease: Object) -> Claim:
    """A Lease with fields missing was made by a person: it is held by nobody."""
    spec = lease.get("spec") or {}
    annotations = lease["metadata"].get("annotations") or {}
    return Claim(
        holder=spec.get("holderIdentity") or "",
        renewed=spec.get("renewTime") or "",
        term=int(spec.get("leaseTransitions") or 0),
        seconds=float(spec.get("leaseDurationSeconds") or 0),
        address=annotations.get(ANNOTATION_ADDRESS, ""),
    )
