"""python -m bench [restart-in-place | gang | decide | informer | ettr | recovery]; without a word: all."""

import argparse
import asyncio
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path

from .report import Json, keep, tell

RECREATED_AT = 1875
"""The size at which restarts in place are compared with all pods anew."""


def gang(arguments: argparse.Namespace) -> None:
    """Gang start and restart against the floor."""
    from .gang import Wish, measure

    for nodes in arguments.nodes or (200, 1875):
        results = measure(Wish(nodes, arguments.runs, arguments.profile), tell)
        whole = [result for result in results if "ratios" in result]
        for number, result in enumerate(whole, start=1):
            told = ", ".join(f"{name} = {value}" for name, value in result["ratios"].items())
            tell(f"run {number}: {told}; operator's peak {result['operator_peak_rss_mib']} MiB")
        command = f"python -m bench gang --nodes {nodes} --runs {arguments.runs}"
        tell(f"kept in {keep(f'gang-{nodes}', command, results)}")


def decide(arguments: argparse.Namespace) -> None:
    """The core alone: one pass, one placement."""
    from .decide import measure

    results = [measure(nodes, tell) for nodes in arguments.nodes or (1875, 18750)]
    tell(f"kept in {keep('decide', 'python -m bench decide', results)}")


def informer(arguments: argparse.Namespace) -> None:
    """Pods through decoding, record and fleet."""
    from .informer import measure

    results = [measure(pods, tell) for pods in arguments.nodes or (1875, 18750)]
    tell(f"kept in {keep('informer', 'python -m bench informer', results)}")


def ettr(arguments: argparse.Namespace) -> None:
    """The ledger's ETTR at the rates of the fault model, beside the closed form."""
    from .ettr import RATES, SETS, Case, measure

    results = []
    for times in SETS.values():
        for nodes in arguments.nodes or (1875, 18750):
            cases = [Case(nodes, rate, times, arguments.faults, arguments.seats) for rate in RATES]
            results += [measure(case, tell) for case in cases]
    command = f"python -m bench ettr --faults {arguments.faults} --seats {arguments.seats}"
    tell(f"kept in {keep('ettr', command, results)}")


def restart_in_place(arguments: argparse.Namespace) -> None:
    """A fault is reported -> every agent was told to run again."""
    from .restart_in_place import Wish, measure

    for agents in arguments.agents or (200, 1875, 18750):
        results = asyncio.run(measure(Wish(agents, arguments.restarts), tell))
        command = f"python -m bench restart-in-place --agents {agents} --restarts {arguments.restarts}"
        if agents == RECREATED_AT and not arguments.no_recreate:
            results["recreate"] = _recreate(agents)
        tell(f"kept in {keep(f'restart-in-place-{agents}', command, results)}")


def _recreate(nodes: int) -> Json | None:
    """All pods anew, on a real control plane with pretended nodes; None where there is no Go."""
    from .gang import Wish, measure

    if shutil.which("go") is None:
        tell("  all pods anew: left out, there is no Go to build a control plane with")
        return None
    result = measure(Wish(nodes, 1, repairs_only=True), tell)[0]
    if "lost" in result:
        return result
    seconds = {
        name: result["stages"][name]["seconds"]["barrier released"] for name in ("rank_fails", "recreate")
    }
    tell(
        f"  on a control plane with {nodes} pretended nodes: a failed rank -> released again in place"
        f" {seconds['rank_fails']} s, all pods anew {seconds['recreate']} s"
    )
    return result


def recovery(arguments: argparse.Namespace) -> None:
    """SIGKILL of a rank until the next step, warm and cold, on real nodes or by `rerail run`."""
    from functools import partial

    from .recovery import describe, measure
    from .recovery_places import on_nodes, on_this_machine, real_nodes

    results = []
    with nullcontext() if arguments.local else real_nodes() as site:
        for warm in ("Auto", "Never"):
            place = on_this_machine if site is None else partial(on_nodes, site)
            results.append(measure(place, arguments.kills, warm, tell))
            for line in describe(results[-1]):
                tell(line)
    local = " --local" if arguments.local else ""
    command = f"python -m bench recovery --kills {arguments.kills}{local}"
    tell(f"kept in {keep('recovery' + local.replace(' --', '-'), command, results)}")


BENCHES = {
    "restart-in-place": restart_in_place,
    "gang": gang,
    "decide": decide,
    "informer": informer,
    "ettr": ettr,
    "recovery": recovery,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("bench", nargs="?", choices=BENCHES)
    parser.add_argument("--nodes", type=int, action="append", help="size; may be given several times")
    parser.add_argument("--agents", type=int, action="append", help="size of restart-in-place; several times")
    parser.add_argument("--restarts", type=int, default=5, help="restarts of restart-in-place (default 5)")
    parser.add_argument(
        "--no-recreate", action="store_true", help="restart-in-place without all pods anew beside it (Go)"
    )
    parser.add_argument("--runs", type=int, default=3, help="runs of the gang bench (default 3)")
    parser.add_argument("--profile", type=Path, help="collapsed stacks of the operator, by py-spy")
    parser.add_argument("--faults", type=int, default=1000, help="faults per life of ettr (default 1000)")
    parser.add_argument("--seats", type=int, default=4, help="node ranks that ettr decides about (default 4)")
    parser.add_argument("--kills", type=int, default=20, help="kills per run of recovery (default 20)")
    parser.add_argument("--local", action="store_true", help="recovery by rerail run, without a cluster")
    arguments = parser.parse_args()
    chosen = [BENCHES[arguments.bench]] if arguments.bench else list(BENCHES.values())
    for bench in chosen:
        bench(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
