"""The parked interpreter: it has imported what the program will import, and becomes the ranks by fork.

The agent hands this file as text to the image's own interpreter; nothing of the agent may be imported here,
for the image may hold another version. A rank that comes out of it is not to be told from one that was
started by exec: only what was imported before it began differs.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.machinery
import importlib.util
import io
import json
import os
import runpy
import socket
import sys
import time
import types
from typing import Any

HEADER_BYTES = 8
ROOM = "RERAIL_PARKED"
"""The variable whose value is room in this process' memory for the variables of a rank."""
_AT_START = {name: value for name, value in globals().items() if name.startswith("__")}


class Unfit(Exception):
    """Why nothing can be parked for this program; the message completes "no warm start: "."""


class Parked:
    """What is imported, and the socket over which the agent asks for ranks."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._plan = plan
        self._control = socket.socket(fileno=plan["control"])
        self._control.set_inheritable(False)
        self._before = dict(os.environ)
        self._changed: dict[str, str] = {}

    def serve(self) -> None:
        """Import, say so, fork whenever the agent asks; returns in a rank only, ready to run the program."""
        try:
            seconds = self._prepare()
        except Unfit as reason:
            self._say({"unfit": str(reason)})
            os._exit(0)
        write_memory("arg", b"rerail-parked\0")
        self._say({"ready": seconds, "resident_bytes": resident_bytes()})
        while True:
            request, fds = self._next_request()
            out = self._fork(len(request["envs"]))
            if out is not None:
                self._become(request["envs"][out], fds, out)
                return
            for fd in fds:
                os.close(fd)

    # ------------------------------------------------------------------ before

    def _prepare(self) -> float:
        check_source(self._plan)
        began = time.monotonic()
        for name in self._plan["imports"]:
            try:
                importlib.import_module(name)
            except BaseException as error:
                raise Unfit(f"import {name}: {type(error).__name__}: {error}") from error
        took = time.monotonic() - began
        self._changed = {name: value for name, value in os.environ.items() if self._before.get(name) != value}
        self._check_fork()
        return took

    def _check_fork(self) -> None:
        """A fork keeps one thread and no CUDA context: neither may be lost. Raises Unfit.

        Thread pools that end themselves at a fork, as those of OpenBLAS do, are gone after the first.
        """
        pid = os.fork()
        if pid == 0:
            os._exit(1 if bad_fork() else 0)
        if os.waitpid(pid, 0)[1] != 0 or devices_open():
            raise Unfit("importing has opened the accelerator")
        threads = len(os.listdir("/proc/self/task"))
        if threads > 1:
            raise Unfit(f"importing has left {threads - 1} threads, which a fork would lose")
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            if file.read().split():
                raise Unfit("importing has left processes")

    # ------------------------------------------------------------------ the agent's requests

    def _say(self, message: dict[str, Any]) -> None:
        self._control.sendall(json.dumps(message).encode() + b"\n")

    def _next_request(self) -> tuple[dict[str, Any], list[int]]:
        """The next request and the descriptors that came with it; ends the process when the agent is gone."""
        header, fds, _, _ = socket.recv_fds(self._control, HEADER_BYTES, 253)
        body = b""
        size = int.from_bytes(header, "big") if len(header) == HEADER_BYTES else 0
        while len(body) < size:
            piece = self._control.recv(min(size - len(body), 1 << 20))
            if not piece:
                break
            body += piece
        if not body or len(body) < size:
            os._exit(0)
        return json.loads(body), list(fds)

    def _fork(self, count: int) -> int | None:
        """Forks `count` ranks and tells the agent their pids; None here, its index in each rank.

        By way of a process that ends at once: orphans are adopted by the agent, which so learns how they end.
        """
        reading, writing = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        middle = os.fork()
        if middle == 0:
            os.close(reading)
            pids = []
            for index in range(count):
                try:
                    pid = os.fork()
                except OSError:
                    # untold: the agent lets none of them go, and starts them as ever
                    os._exit(1)
                if pid == 0:
                    os.close(writing)
                    return index
                pids.append(pid)
            os.write(writing, json.dumps(pids).encode())
            os._exit(0)
        os.close(writing)
        with open(reading, "rb") as pipe:
            told = pipe.read()
        os.waitpid(middle, 0)
        self._say({"pids": json.loads(told or b"[]")})
        return None

    # ------------------------------------------------------------------ in a rank

    def _become(self, env: dict[str, str], fds: list[int], index: int) -> None:
        """In a rank: own session and streams; once the agent knows this process, its environment."""
        go, output = fds[0], fds[1 + index]
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDONLY)
        for have, want in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(have, want)
        known = os.read(go, 1)
        for fd in (nothing, *fds):
            os.close(fd)
        self._control.close()
        if not known:
            os._exit(0)
        kept = {name: value for name, value in self._changed.items() if name not in env}
        os.environ.clear()
        os.environ.update(env)
        os.environ.update(kept)
        show(self._plan["command"], {k: v for k, v in env.items() if self._before.get(k) != v})
        forget_chance()


def check_source(plan: dict[str, Any]) -> None:
    """Whether the program's own file is one that we can run, and speaks of torch. Raises Unfit."""
    if plan["script"] is None:
        path = file_of(plan["module"])
    else:
        path = plan["script"]
        if not os.path.isfile(path) or path.endswith(".pyc"):
            raise Unfit(f"{path} is no source file")
    if plan["trusted"]:
        return
    try:
        with open(path, "rb") as file:
            source = file.read()
    except OSError as error:
        raise Unfit(f"{path}: {error.strerror}") from error
    if source[:2] == b"PK":
        raise Unfit(f"{path} is no source file")
    if b"torch" not in source:
        raise Unfit(f"{path} does not speak of torch")


def file_of(module: str) -> str:
    """The file that `-m module` runs, found without importing anything of the program. Raises Unfit."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError) as error:
        raise Unfit(f"{module}: {error}") from error
    if spec is None:
        raise Unfit(f"there is no module {module}")
    places = list(spec.submodule_search_locations or ())
    if not rest and not places:
        return str(spec.origin)
    base = "/".join(rest)
    for place in places:
        for end in ("/__main__.py",) if not base else (".py", "/__main__.py"):
            path = f"{place}/{base}".rstrip("/") + end
            if os.path.isfile(path):
                return path
    raise Unfit(f"the file of module {module} is not found")


def bad_fork() -> bool:
    """Whether torch would refuse CUDA in a fork of this process."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    return bool(cuda is not None and getattr(cuda, "_is_in_bad_fork", bool)())


def devices_open() -> bool:
    """Whether this process holds an accelerator's device: its driver does not outlive a fork."""
    for fd in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{fd}").startswith(("/dev/nvidia", "/dev/kfd", "/dev/dri")):
                return True
        except OSError:
            continue
    return False


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def show(command: list[str], variables: dict[str, str]) -> None:
    """Lets /proc tell of this process what it would after an exec: its command line and its variables."""
    write_memory("arg", b"".join(os.fsencode(word) + b"\0" for word in command))
    pairs = [os.fsencode(f"{name}={value}") + b"\0" for name, value in variables.items()]
    write_memory("env", b"".join(pairs), f"{ROOM}=".encode())


def write_memory(area: str, data: bytes, after: bytes = b"") -> None:
    """Replaces the area from the string `after` on; what does not fit, or may not be written, is left out."""
    try:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
        first = 45 if area == "arg" else 47
        start, end = int(fields[first]), int(fields[first + 1])
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            memory.seek(start)
            found = memory.read(end - start).find(after)
            if found < 0:
                return
            room = end - start - found
            if len(data) > room:
                data = data[: data.rfind(b"\0", 0, room) + 1]
            memory.seek(start + found)
            memory.write(data + bytes(room - len(data)))
    except (OSError, ValueError, IndexError):
        return


def forget_chance() -> None:
    """What a process draws or looks up once for itself is not to be shared by its copies."""
    tempfile, processes = sys.modules.get("tempfile"), sys.modules.get("multiprocessing.process")
    mtrand = sys.modules.get("numpy.random.mtrand")
    if tempfile is not None:
        tempfile.tempdir = None  # type: ignore[attr-defined]
    if processes is not None:
        processes.current_process().authkey = os.urandom(32)
    if mtrand is not None:
        mtrand.seed()


def run(plan: dict[str, Any]) -> None:
    """The program as `__main__`, as the interpreter would run it."""
    main = types.ModuleType("__main__")
    main.__dict__.update(_AT_START, __doc__=None, __name__="__main__", __builtins__=builtins)
    if "__annotations__" in _AT_START:
        main.__annotations__ = {}
    sys.modules["__main__"] = main
    try:
        if plan["script"] is None:
            runpy._run_module_as_main(plan["module"])  # type: ignore[attr-defined]  # what the interpreter calls
        else:
            run_script(main, plan["script"])
    except SystemExit:
        raise
    except BaseException:
        sys.excepthook = without_us(sys.excepthook)
        raise


def run_script(main: types.ModuleType, script: str) -> None:
    path = (
        script if os.path.isabs(script) else f"{os.getcwd()}/{script[2:] if script[:2] == './' else script}"
    )
    try:
        with io.open_code(path) as file:
            source = file.read()
    except OSError as error:
        sys.stderr.write(
            f"{sys.executable}: can't open file {path!r}: [Errno {error.errno}] {error.strerror}\n"
        )
        sys.exit(2)
    loader = importlib.machinery.SourceFileLoader("__main__", path)
    main.__dict__.update(__file__=path, __cached__=None, __loader__=loader)
    exec(compile(source, path, "exec", dont_inherit=True), main.__dict__)  # noqa: S102 - it is the program


def without_us(shown: Any) -> Any:
    """An excepthook that leaves out the frames of this file, and then does what the program's own does."""
    ours = globals()

    def hook(kind: Any, value: Any, trace: Any) -> None:
        while trace is not None and trace.tb_frame.f_globals is ours:
            trace = trace.tb_next
        shown(kind, value.with_traceback(trace), trace)

    return hook


def main(plan: dict[str, Any]) -> None:
    """Serve as the parked interpreter; in a rank, run the program."""
    sys.argv[:] = ["-m" if plan["script"] is None else plan["script"], *plan["args"]]
    if hasattr(sys, "orig_argv"):
        sys.orig_argv[:] = plan["command"]
    Parked(plan).serve()
    run(plan)
