"""A life of chaos in virtual time: a job of some size, blows of every kind, and a control plane that comes and goes.

Same seed, same life. The blows are dealt one by one to a gang that trains, so it is known how often it was
interrupted; operators die and the API server goes away at any moment, also in the middle of an answer.
"""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from rerail_operator.core.taxonomy import BROKEN, BY_SIGN, Sign
from rerail_operator.shell.cluster import Kind, Object
from tests.shell.hamlet import job

from .agent import StandIn
from .blows import BLOWS, FATAL, Victim
from .invariants import Account, broken
from .mortal import Fate, When
from .program import loss_of
from .village import Village

DONE = ("Complete", "Failed")
WITHIN_SECONDS = 7200.0
"""A node that a rank has left is out of the question for half an hour, and there may be no other."""


@dataclass
class Told:
    """What became of a life."""

    seed: int
    dealt: list[str] = field(default_factory=list)
    account: Account | None = None
    operators: int = 0
    virtual_seconds: float = 0.0

    def problems(self) -> list[str]:
        """What does not hold."""
        return broken(self.account) if self.account is not None else ["the life has no end"]

    def classes(self) -> list[str]:
        """Of its incidents, in order."""
        assert self.account is not None
        return [incident["class"] for incident in self.account.status.get("incidents") or ()]

    def __str__(self) -> str:
        return f"life {self.seed} ({', '.join(self.dealt) or 'no blow'}; {self.operators} lives of operators)"


class ChaosLife:
    """One job from its creation to its end."""

    def __init__(self, seed: int, signs: Sequence[Sign] = tuple(BLOWS), calm: bool = False) -> None:
        self.rng = random.Random(seed)
        self.told = Told(seed)
        rng = self.rng
        self.size = rng.choice((1, 2, 2, 3, 4))
        self.steps = rng.choice((8, 12, 20))
        self.signs = [rng.choice(signs) for _ in range(rng.choice((1, 1, 2, 2)))]
        self.fatal = rng.choice(tuple(FATAL)) if rng.random() < 0.06 else None
        # A life writes some 150 times; numbers beyond its end strike nobody.
        deaths = {rng.randrange(1, 200): rng.choice(list(When)) for _ in range(rng.choice((0, 1, 1, 2, 3)))}
        self.fate = Fate(deaths)
        self.outages = rng.random() < 0.3
        self.probing = rng.random() < 0.7
        self.wild = rng.random() < 0.25
        """Blows fall as they like, also on a gang that is still coming back; how often it was interrupted is not known."""
        if calm:  # one blow, and nothing else goes wrong
            self.signs, self.fatal, self.outages, self.wild = self.signs[:1], None, False, False
            self.fate, self.size = Fate(), 3
            self.probing = Sign.AGENT_SILENT not in self.signs  # peers that can be asked know more
        self._struck = 0

    async def live(self) -> Told:
        """Raises AssertionError where the ranks were mistreated or nothing moves any more."""
        rng = self.rng
        replicas = rng.choice((1, 1, 2))
        async with Village(self.fate, nodes=self.size + self._room(), replicas=replicas) as village:
            self.village = village
            village.probing = self.probing
            village.troubled = bool(self.fate.ends) or self.outages
            village.program.total_steps = self.steps
            manifest = job(nodes=self.size, ttlSecondsAfterFinished=1, failurePolicy={"maxRestarts": 50})
            await village.cluster.create(Kind.JOB, "default", manifest)
            if self.outages:
                village.spawn(self._weather())
            await (self._wild_blows() if self.wild else self._blows())
            status = await village.until("the end", self._over, WITHIN_SECONDS)
            self.told.operators = village.operators.lives
            self.told.account = await self._account(status)
            self.told.virtual_seconds = village.clock.monotonic()
        return self.told

    def _room(self) -> int:
        """Nodes to spare: mostly as many as will be left for half an hour, now and then one, and the job waits."""
        left = sum(BY_SIGN[sign].away == BROKEN for sign in self.signs) * (2 if self.wild else 1)
        return 1 if self.rng.random() < 0.02 else self.rng.choice((1, 2)) + left

    async def _account(self, status: Object) -> Account:
        village, program = self.village, self.village.program
        await village.until_gone(WITHIN_SECONDS)
        return Account(
            status=status,
            restarts=None
            if self.wild
            else len([sign for sign in self.told.dealt if Sign[sign] not in FATAL]),
            most_restarts=len(self.told.dealt),
            lived=village.ended_at,
            slack=0.5,
            losses=program.losses,
            reference={step: loss_of(step) for step in range(1, self.steps + 1)},
            resumptions=program.resumptions,
            pods=[pod["metadata"]["name"] for pod in await village.pods()],
            processes=list(range(len(village.agents))),
        )

    def _over(self, status: Object) -> bool:
        return status.get("phase") in DONE

    async def _weather(self) -> None:
        """The API server is away now and then; in the end it stays."""
        for _ in range(4):
            await asyncio.sleep(self.rng.uniform(2, 30))
            self.village.outage.begin()
            await asyncio.sleep(self.rng.choice((0.5, 3, 12)))
            self.village.outage.end()

    async def _blows(self) -> None:
        for sign in self.signs:
            await self._blow(sign)
        if self.fatal is not None:
            await self._strike(self.fatal)

    async def _wild_blows(self) -> None:
        """Wherever ranks run just then."""
        await self.village.until("the first step", lambda _: self.village.program.stepping, WITHIN_SECONDS)
        for sign in self.signs * 2:
            await asyncio.sleep(self.rng.uniform(0.0, 6.0))
            running = [agent for agent in self.village.agents.values() if agent.state == "Running"]
            if running:
                self._deal(sign, self.rng.choice(running))

    async def _blow(self, sign: Sign) -> None:
        """Strike, and wait until the gang trains in a later round."""
        program = self.village.program
        if not await self._strike(sign):
            return
        await self.village.until(
            f"a round after {sign.name}",
            lambda seen: self._over(seen) or (program.round > self._struck and program.stepping),
            WITHIN_SECONDS,
        )

    async def _strike(self, sign: Sign) -> bool:
        """Deal it to a rank of a gang that trains on new ground; False when the job ended before."""
        program = self.village.program
        at = max((step for step, _ in program.losses), default=0) + self.rng.randrange(1, 4)
        await self.village.until(
            "steps",
            lambda seen: self._over(seen) or (program.step >= at and program.stepping),
            WITHIN_SECONDS,
        )
        if not program.stepping or program.step >= self.steps - 1:
            return False
        self._struck = program.round
        agent = self.village.agent_of(self.rng.randrange(self.size))
        self._deal(sign, agent)
        return True

    def _deal(self, sign: Sign, agent: StandIn) -> None:
        self.told.dealt.append(sign.name)
        (BLOWS | FATAL)[sign](Victim(self.village, agent, self.rng))
