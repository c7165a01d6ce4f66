"""The `rerail` command: reads arguments, calls, and turns outcomes into exit codes. Decides nothing."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rerail_operator.shell.console import Console, standard

OK, BAD_INPUT, INTERRUPTED = 0, 2, 130

RUN_HELP = """Runs a job on this machine: the same manifest, the same decisions, the same agent; nodes are
names and pods are processes. Images, mounts and placement are left aside; `python` in the command is the
interpreter that runs this. Ctrl-C saves and stops (exit 130); a second one kills. Exit: 0 the job completed,
1 it failed, 2 bad input."""

EXPLAIN_HELP = """Prints what would be decided for a saved world, and why. The snapshot is YAML or JSON:
{job: <TrainingJob>, pods: [...], nodes: [...], agents: {<pod UID>: ...}, now: <time>}, as written by
`rerail run --snapshot`. A key `operator: {badNodeConditions: [...]}` names the bad conditions of nodes;
`rerail run` has none, its nodes are names."""


LEDGER_HELP = """Prints where a job's wall clock went, by stage, what each interruption cost, and what the
model of effective training time expects. Reads the TrainingJob from the cluster, as kubectl would, or a file:
the report of `rerail run --report`, or a TrainingJob as `kubectl get -o yaml` prints it."""

NODES_HELP = """Prints the nodes that interruptions of jobs speak against. A node with three strikes in seven
days is avoided by all jobs while there are others, and never more than 5 % of like nodes are. --clear lets
one in again."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    options = _parser().parse_args(arguments)
    console = standard()
    commands = {"run": _run, "explain": _explain, "ledger": _ledger, "nodes": _nodes}
    try:
        return commands[options.command](options, console)
    except KeyboardInterrupt:  # before `rerail run` listens itself, or while a cluster is asked
        console.complain(f"rerail {options.command}: interrupted")
        return INTERRUPTED


def _run(options: argparse.Namespace, console: Console) -> int:
    # Imported here: `rerail --help` must not wait for the whole operator.
    from rerail_operator.shell.local.run import BadRun, RunOptions, run_job

    wanted = RunOptions(
        manifest=options.manifest,
        inject=tuple(options.inject),
        report=options.report,
        workdir=options.workdir,
        keep=options.keep,
        snapshot=options.snapshot,
        port=options.port,
    )
    try:
        return run_job(wanted, console)
    except BadRun as error:
        console.complain(f"rerail run: {error}")
        return BAD_INPUT


def _explain(options: argparse.Namespace, console: Console) -> int:
    from rerail_operator.shell.explain import BadSnapshot, explain_file

    try:
        console.say(explain_file(options.snapshot))
    except BadSnapshot as error:
        console.complain(f"rerail explain: {error}")
        return BAD_INPUT
    return OK


def _ledger(options: argparse.Namespace, console: Console) -> int:
    from rerail_operator.shell.ledger.command import NoAccount, Wish, show

    place = (options.namespace, options.kubeconfig, options.context)
    try:
        show(Wish(options.job, options.report, options.plot, place), console)
    except NoAccount as error:
        console.complain(f"rerail ledger: {error}")
        return BAD_INPUT
    return OK


def _nodes(options: argparse.Namespace, console: Console) -> int:
    from rerail_operator.shell.strikes.command import NoNodes, Wish, show

    wish = Wish(options.namespace, options.clear, options.all, options.kubeconfig, options.context)
    try:
        show(wish, console)
    except NoNodes as error:
        console.complain(f"rerail nodes: {error}")
        return BAD_INPUT
    return OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rerail", description="Keeps PyTorch training jobs training.")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_run(commands.add_parser("run", help="run a job on this machine, no cluster", description=RUN_HELP))
    explain = commands.add_parser(
        "explain", help="say what would be decided for a saved world", description=EXPLAIN_HELP
    )
    explain.add_argument("snapshot", type=Path, help="file with a saved world")
    _add_ledger(commands.add_parser("ledger", help="say where a job's time went", description=LEDGER_HELP))
    _add_nodes(
        commands.add_parser("nodes", help="say which nodes fail again and again", description=NODES_HELP)
    )
    return parser


def _add_run(run: argparse.ArgumentParser) -> None:
    run.add_argument("manifest", type=Path, help="file with one TrainingJob")
    run.add_argument(
        "--inject",
        action="append",
        default=[],
        metavar="FAULT",
        help="kill:rank=3,step=40 | stop:node=1,step=40 | lose:node=1,step=40 | hang:rank=1,step=40; "
        "may be given several times",
    )
    run.add_argument("--report", type=Path, metavar="FILE", help="write the end report here, as JSON")
    run.add_argument(
        "--workdir",
        type=Path,
        metavar="DIR",
        help="keep checkpoints and logs here; the next run goes on from them",
    )
    run.add_argument("--keep", action="store_true", help="keep the temporary workdir and print where it is")
    run.add_argument(
        "--snapshot", type=Path, metavar="FILE", help="save the last world seen, for `rerail explain`"
    )
    run.add_argument(
        "--port", type=_port, default=0, metavar="N", help="the coordinator's port (default: a free one)"
    )


def _add_ledger(ledger: argparse.ArgumentParser) -> None:
    ledger.add_argument("job", nargs="?", metavar="JOB", help="name of a TrainingJob on the cluster")
    ledger.add_argument("-n", "--namespace", metavar="NS", help="its namespace (default: the context's)")
    _add_credentials(ledger)
    ledger.add_argument("--report", type=Path, metavar="FILE", help="read this file and no cluster")
    ledger.add_argument("--plot", type=Path, metavar="FILE", help="draw it too: .png or .svg (matplotlib)")


def _add_nodes(nodes: argparse.ArgumentParser) -> None:
    nodes.add_argument("--clear", metavar="NODE", help="drop what is held against this node")
    nodes.add_argument("--all", action="store_true", help="nodes without strikes too")
    nodes.add_argument(
        "-n",
        "--namespace",
        metavar="NS",
        default="rerail-system",
        help="the operator's namespace (default: rerail-system)",
    )
    _add_credentials(nodes)


def _add_credentials(command: argparse.ArgumentParser) -> None:
    command.add_argument("--kubeconfig", metavar="FILE", help="(default: as kubectl)")
    command.add_argument("--context", metavar="NAME", help="of the kubeconfig (default: the current one)")


def _port(text: str) -> int:
    if not text.isdigit() or not 0 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; write 0 (any free one) to 65535")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
