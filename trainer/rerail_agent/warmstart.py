"""Warm start, the agent's side: one parked interpreter beside the ranks, from which they are forked.

It carries no round and knows no order: it only saves each start the import of torch. Whatever is unusual
about a program or goes wrong here ends in a cold start, said once. One that was ready and is lost is followed
by another before the next round, when no rank runs whose memory or cores the imports could take.
"""

from __future__ import annotations

import asyncio
import json
import os
import pkgutil
import re
import select
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rerail_agent import proctree
from rerail_agent.environment import Surroundings, lasting_env
from rerail_agent.output import Lines, overwritten

ANSWER_SECONDS = 3.0
"""How long a fork may take: the agent hears nothing else meanwhile."""
IMPORT_SECONDS = 120.0
"""How long the barrier waits for the imports; without them the ranks would need as long after it."""
RENEWALS = 3
"""How often one that was lost is started again: what dies more often is killed by what does not go away."""
PIPE_BYTES = 60 * 1024
"""What a pipe takes before anybody reads."""
ROOM = "RERAIL_PARKED"
ROOM_BYTES = 4096
_PYTHON = re.compile(r"python(\d+(\.\d+)*)?")
_PLAIN_FLAGS = frozenset({"-u", "-O", "-OO", "-B"})
_TRAINER = "rerail_trainer"


@dataclass(frozen=True)
class Program:
    """A command that runs one Python program: either `script` or `module` is set."""

    command: tuple[str, ...]
    flags: tuple[str, ...]
    script: str | None
    module: str | None
    args: tuple[str, ...]

    @property
    def is_trainer(self) -> bool:
        return self.module == _TRAINER


def read_program(command: Sequence[str]) -> Program | None:
    """The program that a Python interpreter runs; None for a command line that we do not know by heart."""
    if not _PYTHON.fullmatch(os.path.basename(command[0])):
        return None
    words, flags = list(command[1:]), list[str]()
    while words:
        word = words.pop(0)
        if word == "-m":
            return Program(tuple(command), tuple(flags), None, words[0], tuple(words[1:])) if words else None
        if word in _PLAIN_FLAGS or (word.startswith("-X") and len(word) > 2):
            flags.append(word)
        elif word == "-X" and words:
            flags += [word, words.pop(0)]
        elif word.startswith("-") or not word:
            return None
        else:
            return Program(tuple(command), tuple(flags), word, None, tuple(words))
    return None


@dataclass(frozen=True)
class Garage:
    """What a parked interpreter needs of the agent that keeps it."""

    loop: asyncio.AbstractEventLoop
    around: Surroundings
    nproc: int
    say: Callable[[str], None]
    print: Callable[[bytes], None]


class Parking:
    """The parked interpreter of this node: none, importing, ready, or lost."""

    def __init__(self, garage: Garage, program: Program | None) -> None:
        self._garage = garage
        self._program = program
        self._env: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._output: int | None = None
        self._lines = Lines()
        self._heard = b""
        self._began = 0.0
        self._lost = 0
        self._owed = False
        self.ready = False

    def start(self) -> None:
        """Start to import; nothing happens where the program is none to be parked."""
        program, loop = self._program, self._garage.loop
        if program is None:
            return
        ours, theirs = socket.socketpair()
        reading, writing = os.pipe()
        try:
            self._spawn(program, theirs, writing)
        except OSError as error:
            ours.close()
            os.close(reading)
            self._garage.say(f"no warm start: {error}")
            return
        finally:
            theirs.close()
            os.close(writing)
        ours.setblocking(False)
        os.set_blocking(reading, False)
        self._heard, self._lines = b"", Lines()
        self._control, self._output, self._began = ours, reading, loop.time()
        loop.add_reader(ours.fileno(), self._hear)
        loop.add_reader(reading, self._read_output)

    def renew(self) -> None:
        """Start another in place of one that was lost, once that has ended; for a time when no rank runs."""
        if self._owed and self._process is None:
            self._owed = False
            self._unheard()
            self.start()

    @property
    def pid(self) -> int | None:
        """The parked interpreter while it is alive and not reaped."""
        return self._process.pid if self._process is not None else None

    def settled(self, now: float) -> bool:
        """Whether the barrier need not wait for it: it is ready, given up, or too slow."""
        return self._control is None or self.ready or now - self._began > IMPORT_SECONDS

    def fork(self, envs: Sequence[Mapping[str, str]], outputs: Sequence[int]) -> list[int] | None:
        """One rank per environment, forked and let go once its pid is known; None: start them cold.

        The ranks are children of the agent, each in a session of its own, and write to the outputs.
        """
        if not self.ready or self._control is None or self._program is None:
            return None
        if any(env.get(name) != value for env in envs for name, value in self._env.items()):
            self._garage.say("cold start: what was imported was imported under other variables")
            return None
        go_reading, go = os.pipe()
        try:
            pids = self._ask([dict(env) for env in envs], [go_reading, *outputs])
            os.write(go, b"g" * len(pids))
            return pids
        except (OSError, ValueError) as error:
            self.lose(f"it does not fork ({error})")
            return None
        finally:
            os.close(go_reading)
            os.close(go)

    def ended(self, pid: int, code: int) -> None:
        """A child of the agent was reaped that is no rank."""
        if self._process is None or self._process.pid != pid:
            return
        self._process.returncode = code
        self._process = None
        self._read_output()
        self._hear()
        if self._control is not None:
            self.lose(f"it ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}")

    def lose(self, why: str) -> None:
        """Starts are cold until it is renewed; for ever, if it never was ready or was lost too often."""
        if self._control is not None:
            self._owed = self.ready and self._lost < RENEWALS
            self._lost += 1
            if self._owed:
                then = "another is started before the next round"
                self._garage.say(f"the parked interpreter is lost: {why}; {then}")
            else:
                self._garage.say(f"no warm start: the parked interpreter is given up: {why}")
        self._close()

    # ------------------------------------------------------------------ the process

    def _spawn(self, program: Program, control: socket.socket, output: int) -> None:
        self._env = lasting_env(self._garage.around, self._garage.nproc)
        source, sink = os.pipe()
        try:
            os.write(sink, _text(program, control.fileno()))
            os.close(sink)
            self._process = subprocess.Popen(
                _padded(program, f"exec(open({source}).read())"),
                env={**self._env, ROOM: "-" * ROOM_BYTES},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(source, control.fileno()),
                start_new_session=True,
            )
        except ValueError as error:
            raise OSError(str(error)) from error
        finally:
            os.close(source)

    def _ask(self, envs: list[dict[str, str]], fds: list[int]) -> list[int]:
        """The pids of forked ranks that wait to be let go. Raises OSError or ValueError."""
        if (control := self._control) is None:
            raise OSError("it is gone")
        body = json.dumps({"envs": envs}).encode()
        control.setblocking(True)
        control.settimeout(ANSWER_SECONDS)
        socket.send_fds(control, [len(body).to_bytes(8, "big")], fds)
        control.sendall(body)
        control.setblocking(False)
        deadline = time.monotonic() + ANSWER_SECONDS
        while b"\n" not in self._heard:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([control], [], [], left)[0]:
                raise OSError(f"no answer in {ANSWER_SECONDS:g} s")
            data = control.recv(65536)
            if not data:
                raise OSError("it is gone")
            self._heard += data
        line, _, self._heard = self._heard.partition(b"\n")
        pids = json.loads(line).get("pids")
        if not isinstance(pids, list) or len(pids) != len(envs):
            raise ValueError("fork failed")
        return [int(pid) for pid in pids]

    # ------------------------------------------------------------------ what it says

    def _hear(self) -> None:
        if self._control is None:
            return
        try:
            data = self._control.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            if self._process is None:
                return
            # its end will be reaped and told; until then there is nothing to be heard
            self._garage.loop.remove_reader(self._control.fileno())
            return
        self._heard += data
        while b"\n" in self._heard and self._control is not None:
            line, _, self._heard = self._heard.partition(b"\n")
            self._take(json.loads(line))

    def _take(self, message: dict[str, Any]) -> None:
        if "unfit" in message:
            self._garage.say(f"no warm start: {message['unfit']}")
            self._close(kill=False)
        elif "ready" in message:
            self.ready = True
            seconds, held = message["ready"], message["resident_bytes"] / 2**20
            self._garage.say(f"warm start: imported in {seconds:.1f} s; parked with {held:.0f} MiB resident")

    def _read_output(self) -> None:
        """What the imports print, a warning for example: no rank will print it again."""
        while self._output is not None:
            try:
                data = os.read(self._output, 65536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._unheard()
                return
            lines = self._lines.feed(data, self._garage.loop.time())
            self._garage.print(b"".join(b"[parked] " + overwritten(line) + b"\n" for line in lines))

    def _unheard(self) -> None:
        """Nobody listens any more to what it, or what its imports have started, prints."""
        if self._output is not None:
            self._garage.loop.remove_reader(self._output)
            os.close(self._output)
            self._output = None

    def _close(self, kill: bool = True) -> None:
        self.ready = False
        if self._control is not None:
            self._garage.loop.remove_reader(self._control.fileno())
            self._control.close()
            self._control = None
        if kill and self._process is not None:
            proctree.kill(self._process.pid)


def _text(program: Program, control: int) -> bytes:
    """What the image's interpreter is to run, as Python."""
    source = pkgutil.get_data("rerail_agent", "parked.py") or b""
    place = os.getcwd() if program.script is None else os.path.dirname(os.path.realpath(program.script))
    plan = {
        "control": control,
        "command": list(program.command),
        "script": program.script,
        "module": program.module,
        "args": list(program.args),
        "trusted": program.is_trainer,
        "imports": ["torch", f"{_TRAINER}.startup"] if program.is_trainer else ["torch"],
    }
    # sys.path first: what the program's own folder hides from a cold start it must hide from this one
    text = (
        "import sys\n"
        f"if not getattr(sys.flags, 'safe_path', False): sys.path[0] = {place!a}\n"
        f"exec(compile({source.decode('ascii')!r}, '<rerail warm start>', 'exec', dont_inherit=True))\n"
        f"main({plan!a})\n"
    )
    raw = text.encode("ascii")
    if len(raw) > PIPE_BYTES:
        raise OSError("the command line is too long")
    return raw


def _padded(program: Program, code: str) -> list[str]:
    """The interpreter's command line, as long as the program's, which the ranks will show in its place."""
    words = [program.command[0], *program.flags, "-c", code]
    lacking = sum(len(os.fsencode(w)) + 1 for w in program.command) - sum(
        len(os.fsencode(w)) + 1 for w in words
    )
    words[-1] += "#" * max(0, lacking)
    return words
