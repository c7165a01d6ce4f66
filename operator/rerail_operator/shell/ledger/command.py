"""Reads an account, prints it and draws it."""

from dataclasses import dataclass
from pathlib import Path

from rerail_operator.shell.asking import Place
from rerail_operator.shell.console import Console
from rerail_operator.shell.ledger.account import NoAccount, from_cluster, from_file
from rerail_operator.shell.ledger.table import as_text

__all__ = ["NoAccount", "Wish", "show"]

FORMATS = (".png", ".svg")


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for. `place`: namespace, kubeconfig and context, None where kubectl's is meant."""

    job: str | None
    report: Path | None
    plot: Path | None
    place: tuple[str | None, str | None, str | None] = (None, None, None)


def show(wish: Wish, console: Console) -> None:
    """Print the ledger, and draw it where that is wished. Raises `NoAccount` before anything is printed."""
    if (wish.job is None) is (wish.report is None):
        raise NoAccount("name either a job of the cluster or, with --report, a file")
    if wish.plot is not None and wish.plot.suffix not in FORMATS:
        raise NoAccount(f"--plot {wish.plot}: write a name that ends in {' or '.join(FORMATS)}")
    if wish.report is not None:
        account = from_file(wish.report)
    else:
        account = from_cluster(str(wish.job), Place(*wish.place))
    if wish.plot is not None:
        # Imported here: a table needs no matplotlib.
        try:
            from rerail_operator.shell.ledger.picture import save
        except ModuleNotFoundError as error:
            missing = (error.name or "matplotlib").partition(".")[0]
            raise NoAccount(f"--plot needs {missing}: pip install {missing}") from None
        try:
            save(account, wish.plot)
        except (OSError, ValueError) as error:
            raise NoAccount(f"--plot {wish.plot}: {error}") from None
    console.say(as_text(account))
