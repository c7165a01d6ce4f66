"""Warm start: ranks that come out of a parked interpreter are as those that the agent starts itself.

`torch` is a file of one line here: what matters is that it is imported before, not what it does. The trainer with
the real one is in tests/local/test_warm.py.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rerail_agent.warmstart import Program, read_program
from tests.agent.coordinator import Coordinator
from tests.agent.process import AgentProcess, eventually
from tests.agent.warm import parked, ranks, started, through

NewAgent = Callable[[], AgentProcess]

FACTS = """
# torch
import gc, json, os, resource, signal, sys, threading
def environ(text): return sorted(v.decode() for v in text.split(b"\\0") if v)
me, main = f"/proc/{os.getpid()}", sys.modules["__main__"]
fds = {int(f): os.readlink(f"{me}/fd/{f}").partition("[")[0] for f in os.listdir(f"{me}/fd") if int(f) < 30
       and os.path.exists(f"{me}/fd/{f}")}
facts = {
    "argv": sys.argv, "orig_argv": getattr(sys, "orig_argv", None), "flags": list(sys.flags), "path": sys.path,
    "executable": sys.executable, "xoptions": sys._xoptions, "warnings": sys.warnoptions,
    "streams": [(s.encoding, s.errors, s.line_buffering, s.write_through, s.isatty(), s.fileno())
                for s in (sys.stdin, sys.stdout, sys.stderr)],
    "cwd": os.getcwd(), "umask": os.umask(0o22), "nice": os.nice(0), "fds": sorted(fds.items()),
    "signals": {int(s): str(signal.getsignal(s)) for s in signal.valid_signals()},
    "mask": [int(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
    "status": [line for line in open(f"{me}/status") if line.startswith(("SigIgn", "SigBlk", "SigCgt", "Threads"))],
    "leads": [os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid()], "command": open(f"{me}/cmdline").read().rstrip("\\0"),
    "born with": environ(open(f"{me}/environ", "rb").read()), "environment": list(os.environ.items()),
    "threads": [t.name for t in threading.enumerate()], "main thread": threading.current_thread() is threading.main_thread(),
    "gc": [gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()],
    "limits": [resource.getrlimit(n) for n in range(10)], "cores": sorted(os.sched_getaffinity(0)),
    "names": sorted(name for name in vars(main) if name.startswith("__")), "file": main.__file__, "name": __name__,
    "spec": [getattr(main.__spec__, "name", None), main.__package__, main.__doc__, str(type(main.__loader__)),
             getattr(main, "__annotations__", None), getattr(main, "__cached__", None)],
}
for name in sorted(facts): print("fact", name, json.dumps(facts[name], sort_keys=True), flush=True)
"""


def printed(agent: AgentProcess) -> list[str]:
    """What the ranks printed, without the names of folders and the numbers of processes."""
    text = re.sub(r"/rerail-\w+/", "/OWN/", agent.output().replace(str(agent.folder), "FOLDER"))
    return [line for line in text.splitlines() if line.startswith("[rank")]


async def both_ways(new_agent: NewAgent, place: Path, *command: str) -> list[tuple[list[str], Any]]:
    """What the ranks print and how they end: from a parked interpreter, and without."""
    seen = []
    for warm in ("Auto", "Never"):
        async with Coordinator() as coordinator:
            agent = started(new_agent(), coordinator, place, *command, RERAIL_WARM_START=warm)
            await through(coordinator)
            end = await coordinator.until(lambda r: r["state"] in ("Done", "Failed") and not r["ranks_alive"])
            evidence = end["exit"]
            if evidence:
                del evidence["age"]
            assert ("warm start: imported" in agent.output()) == (warm == "Auto")
            assert "no warm start" not in agent.output()
            seen.append((printed(agent), evidence))
            agent.clean_up()
    return seen


COMMANDS = {
    "a script by its absolute path": lambda place: (str(place / "facts.py"), "one", "--two=2"),
    "a script by a relative path": lambda place: (os.path.relpath(place / "facts.py"),),
    "a script behind a link": lambda place: (str(place / "package" / "link.py"),),
    "a module": lambda place: ("-m", "facts", "one"),
    "a module in a package": lambda place: ("-m", "package.inner", "one"),
    "a package": lambda place: ("-m", "package"),
    "flags of the interpreter": lambda place: ("-u", "-OO", "-X", "utf8", "-Xfaulthandler", "-m", "facts"),
}


@pytest.mark.parametrize("name", COMMANDS)
async def test_a_rank_finds_itself_as_after_an_exec(new_agent: NewAgent, place: Path, name: str) -> None:
    for file in ("facts.py", "package/inner.py", "package/__main__.py"):
        (place / file).write_text(FACTS)
    (place / "package" / "link.py").symlink_to("../facts.py")
    warm, cold = await both_ways(new_agent, place, sys.executable, *COMMANDS[name](place))
    assert [line for line in warm[0] if line not in cold[0]] == []
    assert warm == cold
    assert len(warm[0]) > 20 and warm[1] is None


PROGRAMS = {
    "an exit code": "import sys; sys.exit(75)",
    "words at the exit": "import sys; sys.exit('words')",
    "a code without finalization": "import os; os._exit(81)",
    "an exception": "def f():\n    raise ValueError('wrong')\nf()",
    "an exception with its own hook": "import sys\nsys.excepthook = lambda k, v, t: print('hook', k, v, t.tb_lineno)\n1/0",
    "an exception out of another": "try:\n    1/0\nexcept ZeroDivisionError:\n    {}['a']",
    "a syntax error": "def f(:\n    pass",
    "a keyboard interrupt": "raise KeyboardInterrupt",
    "an abort": "import os; os.abort()",
    "a kill": "import os; os.kill(os.getpid(), 9)",
    "a termination": "import os; os.kill(os.getpid(), 15)",
    "what runs at the end": "import atexit, threading\natexit.register(print, 'at exit')\n"
    "threading.Timer(0.1, print, ['timer']).start()\nprint('main is through')",
    "output that is not flushed": "import sys; sys.stdout.write('half a line'); sys.stderr.write('more')",
    "another program in its place": "import os; os.execvp('sh', ['sh', '-c', 'echo $RANK of $WORLD_SIZE; exit 9'])",
    "the end of input": "import sys; print(repr(sys.stdin.read()))",
}


@pytest.mark.parametrize("name", PROGRAMS)
async def test_a_rank_ends_as_after_an_exec(new_agent: NewAgent, place: Path, name: str) -> None:
    (place / "train.py").write_text("# torch\n" + PROGRAMS[name] + "\n")
    warm, cold = await both_ways(new_agent, place, sys.executable, str(place / "train.py"))
    assert warm == cold


async def test_a_module_that_fails_is_told_as_after_an_exec(new_agent: NewAgent, place: Path) -> None:
    (place / "package" / "inner.py").write_text("import torch\nprint(torch.MARK)\nimport nowhere\n")
    warm, cold = await both_ways(new_agent, place, sys.executable, "-m", "package.inner")
    assert warm == cold and warm[1]["exception"] == "ModuleNotFoundError"


CHILDREN = """
import multiprocessing, tempfile, torch
tempfile.tempdir = "/tmp"  # the path of a socket must be short
def work(number): return number * number, __name__
if __name__ == "__main__":
    for method in ("fork", "spawn", "forkserver"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            print(method, pool.map(work, range(4)), flush=True)
"""


@pytest.mark.parametrize("module", [False, True], ids=["script", "module"])
async def test_a_program_starts_processes_of_its_own(new_agent: NewAgent, place: Path, module: bool) -> None:
    (place / "package" / "work.py").write_text(CHILDREN)
    words = ("-m", "package.work") if module else (str(place / "package" / "work.py"),)
    warm, cold = await both_ways(new_agent, place, sys.executable, *words)
    assert warm == cold and len(warm[0]) == 3


WAITS = """
import json, os, sys, time, torch
print("up", os.environ["RANK"], os.environ["RERAIL_ROUND"], os.getppid(), flush=True)
with open(os.environ["RERAIL_PROGRESS"], "a") as file: file.write(json.dumps({"step": 3}) + "\\n")
time.sleep(1000)
"""


async def test_restarts_come_out_of_the_same_parked_interpreter(
    coordinator: Coordinator, agent: AgentProcess, place: Path
) -> None:
    (place / "train.py").write_text(WAITS)
    started(agent, coordinator, place, sys.executable, str(place / "train.py"), RERAIL_NPROC="2")
    await through(coordinator, nproc=2)
    await agent.says(f"[rank 1] up 1 1 {agent.pid}\n")
    first = parked(agent)
    assert len(ranks(agent)) == 2
    await coordinator.until(lambda r: (r["progress"] or {}).get("step") == 3)
    os.kill(ranks(agent)[0], signal.SIGKILL)
    failed = await coordinator.state("Failed", 1)
    assert failed["exit"]["signal"] == 9 and failed["ranks_alive"] == 1
    coordinator.join(2)
    await coordinator.state("Ready", 2)
    assert agent.below() == [first]
    coordinator.run(2, nproc=2)
    await agent.says(f"[rank 1] up 1 2 {agent.pid}\n")
    assert parked(agent) == first and "cold" not in agent.output()
    coordinator.finish(0)
    assert await agent.exit_code() == 0
    await eventually(lambda: not os.path.exists(f"/proc/{first}"), "the end of the parked interpreter")


async def test_what_a_rank_leaves_is_killed_and_the_parked_interpreter_stays(
    coordinator: Coordinator, agent: AgentProcess, place: Path
) -> None:
    (place / "train.py").write_text(
        "import os, signal, time, torch\nsignal.signal(15, signal.SIG_IGN)\n"
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork(): os._exit(0)\n"
        "    print('orphan', os.getpid(), flush=True)\n    time.sleep(1000)\ntime.sleep(1000)\n"
    )
    started(agent, coordinator, place, sys.executable, str(place / "train.py"))
    await through(coordinator)
    orphan = int((await agent.says("orphan")).split("orphan ")[1].split()[0])
    stays = parked(agent)
    coordinator.stop(1, "abort")
    await coordinator.state("Stopped", 1)
    assert not os.path.exists(f"/proc/{orphan}") and agent.below() == [stays]


async def test_a_parked_interpreter_does_not_outlive_its_agent(
    coordinator: Coordinator, agent: AgentProcess, place: Path
) -> None:
    (place / "train.py").write_text(WAITS)
    started(agent, coordinator, place, sys.executable, str(place / "train.py"))
    await agent.says("warm start: imported")
    pid = await eventually(lambda: parked(agent), "the parked interpreter")
    agent.signal(signal.SIGKILL)
    await eventually(lambda: not os.path.exists(f"/proc/{pid}"), "the end of the parked interpreter")


async def test_what_an_import_changes_and_prints_is_not_lost(
    coordinator: Coordinator, agent: AgentProcess, place: Path
) -> None:
    (place / "torch.py").write_text(
        "import os, sys\nos.environ['LEFT_BY_TORCH'] = '1'\nprint('a warning', file=sys.stderr)\n"
    )
    (place / "train.py").write_text("import os, torch\nprint('left', os.environ['LEFT_BY_TORCH'])\n")
    started(agent, coordinator, place, sys.executable, str(place / "train.py"))
    await through(coordinator)
    await agent.says("[rank 0] left 1")
    await agent.says("[parked] a warning")


async def test_copies_do_not_draw_the_same_numbers(
    coordinator: Coordinator, agent: AgentProcess, place: Path
) -> None:
    (place / "torch.py").write_text("import random, tempfile, multiprocessing, numpy.random\n")
    (place / "train.py").write_text(
        "import random, tempfile, multiprocessing, numpy, os, torch\n"
        "key = bytes(multiprocessing.current_process().authkey).hex()\n"
        "print('drawn', random.random(), numpy.random.random(), key, os.path.basename(tempfile.mkdtemp()))\n"
        "print(tempfile.gettempdir() == os.environ['TMPDIR'])\n"
    )
    command = (sys.executable, str(place / "train.py"))
    started(agent, coordinator, place, *command, RERAIL_NPROC="2", OMP_NUM_THREADS="1")
    for number in (1, 2):
        await through(coordinator, number, nproc=2)
        await coordinator.state("Done", number)
    drawn = [line.split()[3:] for line in printed(agent) if "drawn" in line]
    assert len(drawn) == 4 and "warm start: imported" in agent.output()
    for column in zip(*drawn, strict=True):
        assert len(set(column)) == 4
    assert sum(line.endswith("True") for line in printed(agent)) == 4


REASONS = {
    "torch is not there": (None, "import torch", "no warm start: import torch: ModuleNotFoundError: "),
    "torch cannot be imported": ("1/0", "import torch", "no warm start: import torch: ZeroDivisionError: "),
    "the program does not speak of it": ("", "print(1)", "train.py does not speak of torch"),
    "the import leaves a thread": (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
        "import torch",
        "importing has left 1 threads",
    ),
    "the import leaves a process": (
        "import subprocess\nchild = subprocess.Popen(['sleep', '9'])",
        "import torch",
        "importing has left processes",
    ),
    "the import ends the process": ("import os\nos._exit(3)", "import torch", "it ended with exit code 3"),
}


@pytest.mark.parametrize("name", REASONS)
async def test_what_cannot_be_parked_is_said_once_and_started_cold(
    coordinator: Coordinator, agent: AgentProcess, place: Path, name: str
) -> None:
    torch, program, said = REASONS[name]
    (place / "torch.py").unlink()
    if torch is not None:
        (place / "torch.py").write_text(torch + "\n")
    (place / "train.py").write_text("print('here')\n" + program + "\n")
    # the interpreter without the packages of this environment, where a real torch is
    python = os.path.realpath(sys.executable) if torch is None else sys.executable
    command = (python, str(place / "train.py"))
    started(agent, coordinator, place, *command, PYTHONNOUSERSITE="1")
    for number in (1, 2):
        await through(coordinator, number)
        await coordinator.until(lambda r, n=number: r["round"] == n and r["state"] in ("Done", "Failed"))
    assert agent.output().count(said) == 1 and "warm start: imported" not in agent.output()
    assert agent.output().count("[rank 0] here") == 2
    assert parked(agent) is None


async def test_never_means_never(coordinator: Coordinator, agent: AgentProcess, place: Path) -> None:
    (place / "train.py").write_text(WAITS)
    started(agent, coordinator, place, sys.executable, str(place / "train.py"), RERAIL_WARM_START="Never")
    await through(coordinator)
    await agent.says("up 0 1")
    assert agent.below() == agent.rank_pids() and len(agent.below()) == 1
    assert "warm start" not in agent.output()


async def test_other_variables_than_those_of_the_import_mean_a_cold_start(
    coordinator: Coordinator, agent: AgentProcess, place: Path
) -> None:
    (place / "train.py").write_text(WAITS)
    started(agent, coordinator, place, sys.executable, str(place / "train.py"), RERAIL_NPROC="2")
    await through(coordinator, nproc=1)
    await agent.says("up 0 1")
    await agent.says("cold start: what was imported was imported under other variables")


def test_what_is_known_by_heart() -> None:
    def program(text: str) -> tuple[Any, ...] | None:
        read = read_program(text.split())
        return None if read is None else (read.flags, read.script, read.module, read.args)

    cases = {
        "python train.py a -b": ((), "train.py", None, ("a", "-b")),
        "/opt/venv/bin/python3.12 -u -m pkg.mod --x 1": (("-u",), None, "pkg.mod", ("--x", "1")),
        "python3 -X utf8 -Xdev -OO train.py": (("-X", "utf8", "-Xdev", "-OO"), "train.py", None, ()),
        "python": None,
        "python -c pass": None,
        "python -m": None,
        "python -X": None,
        "python -": None,
        "python -I train.py": None,
        "python -uO train.py": None,
        "pythonic train.py": None,
        "sh -c python": None,
        "./train.py": None,
    }
    assert {text: program(text) for text in cases} == cases
    assert Program(("python",), (), None, "rerail_trainer", ()).is_trainer
