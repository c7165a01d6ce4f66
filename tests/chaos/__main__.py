"""`make chaos`: lives in memory, every write point, and lives of real processes. `--seed N` replays one life."""

import argparse
import logging
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from .lives import ChaosLife
from .mortal import Fate, When
from .points import LIVES, point_of
from .virtual import live


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("all", "memory", "points", "run", "nodes"), default="all")
    parser.add_argument("--seed", type=int, help="replay this one life")
    parser.add_argument("--first", type=int, default=0, help="seed of the first life")
    parser.add_argument("--lives", type=int, default=500, help="how many in memory")
    parser.add_argument("--run", type=int, default=4, metavar="N", help="how many of real processes")
    parser.add_argument("--nodes", type=int, default=20, metavar="N", help="how many on real nodes")
    given = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    if given.seed is not None:
        one: dict[str, Callable[[Sequence[int]], Iterator[str]]] = {"run": _of_processes, "nodes": _on_nodes}
        parts = [one.get(given.what, partial(_in_memory, tell=say))([given.seed])]
    else:
        seeds = range(given.first, given.first + given.lives)
        runs = range(given.first, given.first + given.run)
        chosen: dict[str, Callable[[], Iterator[str]]] = {
            "memory": lambda: _in_memory(seeds),
            "points": _write_points,
            "run": lambda: _of_processes(runs),
            "nodes": lambda: _on_nodes(range(given.first, given.first + given.nodes)),
        }
        # real nodes need root and a quarter of an hour: only where they are asked for
        parts = [
            part()
            for name, part in chosen.items()
            if given.what == name or (given.what == "all" and name != "nodes")
        ]
    failed = [problem for part in parts for problem in part]
    for problem in failed:
        say(f"BROKEN: {problem}")
    say("every promise was kept" if not failed else f"{len(failed)} promises were broken")
    return 1 if failed else 0


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _in_memory(seeds: Sequence[int], tell: Callable[[str], None] = lambda _: None) -> Iterator[str]:
    began, dealt, virtual, operators = time.monotonic(), Counter[str](), 0.0, 0
    for seed in seeds:
        life = ChaosLife(seed)
        try:
            told = live(life.live())
        except AssertionError as broken:
            yield f"{life.told}: {broken}; replay: python -m tests.chaos memory --seed {seed}"
            continue
        tell(str(told))
        dealt.update(told.dealt)
        virtual, operators = virtual + told.virtual_seconds, operators + told.operators
        for problem in told.problems():
            yield f"{told}: {problem}; replay: python -m tests.chaos memory --seed {seed}"
    say(
        f"memory: {len(seeds)} lives, {virtual / 3600:.1f} h in {time.monotonic() - began:.0f} s, "
        f"{operators} lives of operators, {sum(dealt.values())} blows:"
    )
    for sign, number in sorted(dealt.items()):
        say(f"  {number:5}  {sign}")


def _write_points() -> Iterator[str]:
    """An operator dies at every single write of a life."""
    for name, a_life in LIVES.items():
        writes = live(a_life(Fate())).writes
        for number, write in enumerate(writes, start=1):
            for when in When:
                where = f"{name}, operator killed {when} write {number} ({point_of(write)})"
                try:
                    problems = live(a_life(Fate({number: when}))).problems()
                except AssertionError as broken:
                    problems = [str(broken)]
                yield from (f"{where}: {problem}" for problem in problems)
        say(f"points: {name}: {len(writes)} writes, an operator killed before and after each:")
        for point, count in Counter(point_of(write) for write in writes).items():
            say(f"  {count:5}  {point}")


def _of_processes(seeds: Sequence[int]) -> Iterator[str]:
    from .processes import live_as_processes, uninterrupted

    with tempfile.TemporaryDirectory(prefix="rerail-chaos-") as folder:
        reference = uninterrupted(Path(folder) / "reference")
        for seed in seeds:
            told = live_as_processes(seed, Path(folder) / str(seed), reference)
            say(str(told))
            yield from (
                f"{told}: {problem}; replay: python -m tests.chaos run --seed {seed}"
                for problem in told.problems()
            )


def _on_nodes(seeds: Sequence[int]) -> Iterator[str]:
    from .on_nodes import lives_on_nodes

    return lives_on_nodes(seeds, say)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
