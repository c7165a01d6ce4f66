"""The agent's state machine: orders and exits in, processes and the report out.

Owns the round, the fence and the ranks. Knows nothing of connections: whoever speaks with the coordinator
hands it parsed orders and asks it for the report.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rerail_agent import proctree
from rerail_agent.console import Console, Sink
from rerail_agent.environment import Surroundings, node_env, rank_env
from rerail_agent.evidence import (
    clear_termination_message,
    exit_report,
    process_code,
    write_termination_message,
)
from rerail_agent.orders import Advice, Finish, Join, Order, Question, Release, Run, Stop
from rerail_agent.ports import PortChoice
from rerail_agent.progress import ProgressFile, progress_report
from rerail_agent.ranks import Launch, Rank, Ranks
from rerail_agent.settings import Settings, Timing
from rerail_agent.stacks import Lookout
from rerail_agent.takedown import Outcome, Takedown
from rerail_agent.warmstart import Garage, Parking, read_program
from rerail_agent.workspace import Cleaner, Workspace
from rerail_api.contract import AgentState, ExitCode

TERMINATED_CODE = 128 + signal.SIGTERM
_TABLE = frozenset(code.value for code in ExitCode if code is not ExitCode.DONE)
_UNSETTLED = (AgentState.IDLE, AgentState.READY, AgentState.RUNNING, AgentState.STOPPING)


@dataclass(frozen=True)
class Leave:
    """The agent is to end; `code` None means the root rank's own."""

    code: int | None
    message: str


@dataclass(frozen=True)
class Site:
    """Where a worker runs: what it was given by the process that hosts it."""

    loop: asyncio.AbstractEventLoop
    inherited: Mapping[str, str]
    workspace: Workspace
    console: Console
    sink: Sink
    adopts: bool = True
    """Orphans below the agent become its children."""


class Worker:
    """One node's part of a job. `step` after every event and now and then; it never waits."""

    def __init__(self, settings: Settings, timing: Timing, site: Site) -> None:
        self._settings = settings
        self._timing = timing
        self._site = site
        self._around = Surroundings(site.inherited, settings.job_uid, site.workspace)
        self._ports = PortChoice()
        self._parking = self._park()
        self._takedown: Takedown | None = None
        self._goal: Join | Stop | Leave | None = None
        self._cleaner = Cleaner(site.workspace)
        self._lookout = Lookout()
        self._forget(0)
        self.term = 0
        self.state = AgentState.IDLE
        self.port: int | None = None
        self.done_since = 0.0
        self.exit_code: int | None = None
        """Set when the agent has nothing more to do."""

    # ------------------------------------------------------------------ what comes in

    def saw_term(self, term: int) -> bool:
        """Note a leader's term; false when it is of a leader that has been succeeded."""
        if term < self.term:
            return False
        self.term = term
        return True

    def obey(self, order: Order, now: float) -> None:
        """One order; those of an older leader or an older round are not for us."""
        if not self.saw_term(order.term):
            self._site.console.say(f"ignored an order of term {order.term}; the leader's is {self.term}")
            return
        # a rank that died before the order came did not die of it
        self.reap(now)
        if isinstance(order, Finish):
            self._leave(Leave(order.code, order.message), now, save=False)
        elif order.round >= self._fence():
            self._obey_round(order, now)

    def heed(self, advice: Advice) -> None:
        """Pass advice on to ranks that run; that of an older leader or of another round is not for them."""
        if self.saw_term(advice.term) and advice.round == self.round and self.state is AgentState.RUNNING:
            self._advise(advice.checkpoint_seconds)

    def look(self, question: Question, now: float) -> None:
        """Find out where the ranks stand; asked again, the answer is already under way or there."""
        if not self.saw_term(question.term) or question.round != self.round:
            return
        if self.state is not AgentState.RUNNING or self._takedown is not None:
            return
        if self._lookout.ask(self.ranks.alive, question.step, now):
            self._site.console.say(f"no step after {question.step}: looking where the ranks stand")

    def terminate(self, name: str, now: float) -> None:
        """SIGTERM to the agent: save and leave; a second one: leave at once."""
        self.reap(now)
        if isinstance(self._goal, Leave):
            self._site.console.say(f"{name} again: killing the ranks")
            self._leave(self._goal, now, save=False)
            return
        self._site.console.say(f"{name}: stopping the ranks")
        self._leave(Leave(None, f"the agent received {name}"), now, save=True)

    def reap(self, now: float) -> None:
        """Take in every child that has ended, orphans that were handed to us among them."""
        for pid, code in sorted(proctree.ended_children(), key=_suspicion):
            rank = self.ranks.ended(pid, code, now, ordered=self._takedown is not None)
            if rank is not None:
                self._rank_ended(rank, now)
            else:
                self._parking.ended(pid, code)

    def step(self, now: float) -> None:
        """Carry on with what is under way."""
        self.ranks.flush(now)
        if self.progress is not None:
            self.progress.poll(now)
        self._lookout.step(self.progress.moved_at if self.progress is not None else None, now)
        if self._takedown is None:
            return
        outcome = self._takedown.step(now)
        if outcome is Outcome.CLEAN and (not isinstance(self._goal, Join) or self._prepared(now)):
            self._cleaned(now)
        elif outcome is Outcome.STUCK:
            self._stuck()

    def leave_unled(self, now: float) -> None:
        """Every rank is done and no leader has come to say so."""
        self._leave(Leave(0, "done; no leader came to release this agent"), now, save=False)

    def stop_unled(self, now: float) -> None:
        """A rank has failed and no leader says what follows: end the others, for no step can be made.
        The report stays that of the failure, with its evidence, until a leader opens a round.
        """
        self._site.console.say("a rank has failed and no leader is there: stopping the others, and waiting")
        self._takedown = Takedown(self.ranks, self._timing.cannot_stop, self._survivors)
        self._takedown.abort(now)

    @property
    def failed_since(self) -> float | None:
        """When the round failed here, as long as others of its ranks run on and nothing ends them."""
        first = self.ranks.first_failed
        unanswered = self.state is AgentState.FAILED and self.ranks.alive and self._takedown is None
        return first.ended_at if first is not None and unanswered else None

    # ------------------------------------------------------------------ what goes out

    @property
    def busy(self) -> bool:
        """Something is being waited for that no signal announces."""
        return self._takedown is not None or self._lookout.busy

    def report(self, now: float) -> dict[str, Any]:
        """REPORT of the contract, but for the probe port, which is not ours."""
        return {
            "state": self.state.value,
            "round": self.round,
            "term": self.term,
            "release": self.release.raw if self.release is not None else None,
            "address": self._settings.pod_ip,
            "port": self.port,
            "exit": self._exit(now),
            "ranks_alive": len(self.ranks.alive),
            **progress_report(self.progress, self.release, now),
            "stacks": self._lookout.answer,
            "checkpoint_seconds": self._advised,
        }

    # ------------------------------------------------------------------ orders

    def _fence(self) -> int:
        """The lowest round whose orders count: the one that is being prepared, else our own."""
        return max(self.round, self._goal.round if isinstance(self._goal, (Join, Stop)) else 0)

    def _obey_round(self, order: Join | Run | Stop, now: float) -> None:
        if isinstance(self._goal, Leave):
            if isinstance(order, Stop) and not order.save and self._takedown is not None:
                self._takedown.abort(now)
            return
        if isinstance(order, Join):
            if order.round > self._fence():
                self._pursue(order, now, save=False, grace_seconds=0.0)
        elif isinstance(order, Stop):
            if self.state is not AgentState.STOPPED or order.round > self.round:
                self._pursue(order, now, save=order.save, grace_seconds=order.grace_seconds)
        elif self.state is AgentState.READY and order.round == self.round:
            self._start(order.release, now)
        elif self.release is not None and order.release != self.release and order.round == self.round:
            self._site.console.say(f"ignored a second, different release of round {self.round}")

    def _pursue(self, goal: Join | Stop | Leave, now: float, save: bool, grace_seconds: float) -> None:
        """End what runs, then do what the goal says. A takedown under way is only ever made harder."""
        self._goal = goal
        if self._takedown is None:
            self._takedown = Takedown(self.ranks, self._timing.cannot_stop, self._survivors)
        if self.ranks.alive and self.state is not AgentState.STUCK:
            self.state = AgentState.STOPPING
        if save:
            self._takedown.save(now, grace_seconds)
        else:
            self._takedown.abort(now)
        self.step(now)

    def _leave(self, leave: Leave, now: float, save: bool) -> None:
        self._pursue(leave, now, save, self._settings.grace_seconds)

    # ------------------------------------------------------------------ rounds

    def _forget(self, number: int) -> None:
        """Nothing of an earlier round is ours any more."""
        self.round = number
        self.release: Release | None = None
        self.ranks = Ranks(self._site.loop, self._site.sink)
        self.progress: ProgressFile | None = None
        self._advised = 0
        self._lookout.drop()

    def _cleaned(self, now: float) -> None:
        """No descendant lives: do what the takedown was for."""
        goal, self._goal, self._takedown = self._goal, None, None
        self.ranks.flush(now)
        self.ranks.close()
        if isinstance(goal, Leave):
            self._left(goal)
        elif isinstance(goal, Stop):
            self._stopped(goal)
        elif isinstance(goal, Join):
            self._forget(goal.round)
            self.port = self._ports.offer()
            self.state = AgentState.READY
            # Were the container to be killed now, the words of an older round would mislead.
            clear_termination_message(self._settings.termination_log)

    def _park(self) -> Parking:
        """Before the first order, so that the imports take none of the time after it."""
        site, settings = self._site, self._settings
        wanted = settings.warm_start and not settings.per_node and site.adopts
        garage = Garage(site.loop, self._around, settings.nproc, site.console.say, site.sink.write)
        parking = Parking(garage, read_program(settings.command) if wanted else None)
        parking.start()
        return parking

    def _survivors(self) -> list[int]:
        """What rounds have left. Below the parked interpreter is only what its imports start for themselves:
        orphans come to the agent, never to one of its children.
        """
        return proctree.descendants(os.getpid(), aside=self._parking.pid)

    def _prepared(self, now: float) -> bool:
        """Whether the place is empty, and what is imported once for all rounds is imported; sees to both."""
        self._parking.renew()
        return self._cleaner.done() and self._parking.settled(now)

    def _stuck(self) -> None:
        if self.state is not AgentState.STUCK:
            self.state = AgentState.STUCK
            self._site.console.say("processes survive KILL; this pod cannot stop and has to be replaced")
            self._write_termination("")
        if isinstance(self._goal, Leave):
            # Nothing is won by staying: what the kernel holds on to does not end sooner for it.
            self._left(self._goal)

    def _stopped(self, order: Stop) -> None:
        if order.round > self.round:
            self._forget(order.round)
        self._ports.release()
        self.port = None
        self.state = AgentState.STOPPED
        self._write_termination("")

    def _left(self, leave: Leave) -> None:
        own = process_code(self.ranks)
        if self.state in _UNSETTLED:
            self.state = AgentState.STOPPED
        self.exit_code = leave.code if leave.code is not None else own
        if self.exit_code is None:
            # Terminated before anything ran: 0 would claim a work done that never began.
            self.exit_code = TERMINATED_CODE
        self._ports.release()
        self._write_termination(leave.message)

    def _start(self, release: Release, now: float) -> None:
        self.release = release
        self.state = AgentState.RUNNING
        self._ports.release()
        workspace = self._site.workspace
        try:
            workspace.renew(release.round)
        except OSError as error:
            self._site.console.say(f"cannot make the folder for temporary files: {error}")
        self._advise(release.checkpoint_seconds)
        self.progress = ProgressFile(workspace.progress)
        self.ranks.start(self._launches(release), now, self._parking.fork)
        for rank in self.ranks.all:
            if not rank.alive:
                self._rank_ended(rank, now)

    def _advise(self, checkpoint_seconds: int) -> None:
        self._advised = checkpoint_seconds
        try:
            self._site.workspace.advise(checkpoint_seconds)
        except OSError as error:
            # Not tried again: ranks that hear nothing save as they did.
            self._site.console.say(f"cannot write the advice for the ranks: {error}")

    def _launches(self, release: Release) -> list[Launch]:
        command = self._settings.command
        if self._settings.per_node:
            label, env = f"node {release.node_rank}", node_env(self._around, release)
            return [Launch(None, 0, label, command, env, self._site.workspace.error_file)]
        launches = []
        for local_rank in range(release.nproc):
            rank = release.node_rank * release.nproc + local_rank
            env = rank_env(self._around, release, local_rank)
            launches.append(Launch(rank, local_rank, f"rank {rank}", command, env))
        return launches

    # ------------------------------------------------------------------ ends

    def _rank_ended(self, rank: Rank, now: float) -> None:
        if self.progress is not None:
            # its last progress belongs to the same report as its end
            self.progress.poll(now)
        if rank.code:
            how = f"signal {-rank.code}" if rank.code < 0 else f"exit code {rank.code}"
            self._site.console.say(f"{rank.launch.label} ended with {how}")
        if self._takedown is not None:
            return
        if self.ranks.first_failed is not None:
            self.state = AgentState.FAILED
        elif not self.ranks.alive:
            self.state = AgentState.DONE
            self.done_since = now
        if rank is self.ranks.first_failed:
            self._write_termination("")

    def _exit(self, now: float) -> dict[str, Any] | None:
        return exit_report(self.ranks, self.progress is not None and self.progress.contract, now)

    def _write_termination(self, message: str) -> None:
        now = self._site.loop.time()
        content = {
            "rerail": 1,
            "round": self.round,
            "state": self.state.value,
            "exit": self._exit(now),
            "message": message,
        }
        write_termination_message(self._settings.termination_log, content)


def _suspicion(child: tuple[int, int]) -> int:
    """Sorts children that ended at once, for the kernel has no order: the likely cause before its victims."""
    code = child[1]
    if code < 0:
        return 0
    return 1 if code in _TABLE else 2
