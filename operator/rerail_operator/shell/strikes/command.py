"""`rerail nodes`: reads nodes and strikes with the rights of whoever asks, and clears a node by hand."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from rerail_operator.core.strikes import Book, cleared, verdicts
from rerail_operator.core.world import Nodes
from rerail_operator.shell.asking import NoAnswer, Place, ask
from rerail_operator.shell.cluster import Cluster, ClusterError, Conflict, Kind, NotFound, Object
from rerail_operator.shell.console import Console
from rerail_operator.shell.observe import observe_node
from rerail_operator.shell.strikes.record import NAME, book_of, data_of
from rerail_operator.shell.strikes.table import as_text

NAMESPACE: Final = "rerail-system"
TRIES: Final = 5


class NoNodes(Exception):
    """There is nothing to show or to clear; the text says why, and what to do instead."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for. `namespace` is the operator's; kubeconfig and context None: as kubectl."""

    namespace: str = NAMESPACE
    clear: str | None = None
    everything: bool = False
    kubeconfig: str | None = None
    context: str | None = None


def show(wish: Wish, console: Console) -> None:
    """Print the table, or clear one node. Raises `NoNodes` before anything is printed."""

    async def question(cluster: Cluster) -> str:
        return await _answer(cluster, wish)

    try:
        text = ask(Place(wish.namespace, wish.kubeconfig, wish.context), question)
    except (NoAnswer, ClusterError) as error:
        raise NoNodes(str(error)) from None
    console.say(text)


async def _answer(cluster: Cluster, wish: Wish) -> str:
    now = datetime.now(UTC)
    if wish.clear is not None:
        return await _clear(cluster, wish, now)
    config_map = await _config_map(cluster, wish)
    listed = (await cluster.list(Kind.NODE)).items
    nodes = Nodes({node.name: node for raw in listed if (node := observe_node(raw)) is not None})
    book: Book = book_of(config_map) if config_map is not None else {}
    return as_text(book, verdicts(book, nodes, now), nodes, wish.everything)


async def _clear(cluster: Cluster, wish: Wish, now: datetime) -> str:
    """One guarded write; the leader writes there as well, so it may take more than one try."""
    node = str(wish.clear)
    for _ in range(TRIES):
        config_map = await _config_map(cluster, wish)
        book: Book = book_of(config_map) if config_map is not None else {}
        if config_map is None or node not in book:
            look = f"`rerail nodes -n {wish.namespace}` lists the nodes with strikes"
            raise NoNodes(f"nothing is held against a node {node}; {look}")
        count = len(book[node].strikes)
        data = data_of(cleared(book, node, now))
        try:
            await cluster.replace(Kind.CONFIG_MAP, wish.namespace, {**config_map, "data": data})
        except Conflict:
            continue
        strikes = "1 strike is" if count == 1 else f"{count} strikes are"
        return f"{node}: {strikes} cleared; the operator takes notice within ten seconds"
    raise NoNodes(f"ConfigMap {NAME} is being written by somebody else again and again; try again")


async def _config_map(cluster: Cluster, wish: Wish) -> Object | None:
    try:
        return await cluster.get(Kind.CONFIG_MAP, wish.namespace, NAME)
    except NotFound:
        return None
