"""`checkpoint`: what lies in a checkpoint folder, whether it is intact, and removing what is not needed.

Torch-free. Nothing here claims the folder: a training may be running in it.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial

from rerail_api.contract import ExitCode
from rerail_trainer.commands import Words
from rerail_trainer.config import CheckpointConfig
from rerail_trainer.failures import BadConfig

from . import layout, ownership
from .inventory import Entry, State, take_stock
from .storage import Storage, open_storage
from .tensorfile import Damaged, Written
from .verify import verify_file

KINDS = {
    "ls": "One line per step: its number, state, time, size, ranks and author.",
    "verify": "Reads every byte and compares every digest; exit code 65 where something is damaged.",
    "prune": "Removes all but the newest steps, never one of the last two.",
}
LEAST = 2
"""So many committed steps are never gone below: one may turn out damaged."""


def main(words: Sequence[str]) -> int:
    """Lists, verifies or prunes; 0, or DATA_MISMATCH where something is damaged."""
    options = _parsed(words)
    storage = open_storage(options.folder)
    if not storage.names(""):
        raise BadConfig(f"checkpoint {options.what}: {storage.root} is empty or not there")
    if options.what == "ls":
        return _list(storage, options)
    if options.what == "verify":
        return _verify(storage, options)
    return _prune(storage, options)


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    name = words[0] if words else ""
    if name not in KINDS:
        overview = Words("checkpoint", "Lists, verifies or prunes the steps in a checkpoint folder.")
        overview.add_argument("what", choices=tuple(KINDS), help="then: --help")
        overview.parse_args(words[:1])
    kind = Words(f"checkpoint {name}", KINDS[name])
    kind.add_argument("folder", metavar="DIR", help="a checkpoint folder, or the URL of one")
    kind.add_argument("--json", action="store_true", help="one JSON object")
    if name == "verify":
        kind.add_argument("--step", type=int, help="only this step")
    if name == "prune":
        _add_prune_words(kind)
    return kind.parse_args(words[1:], argparse.Namespace(what=name))


def _add_prune_words(kind: Words) -> None:
    kind.add_argument("--keep", type=int, required=True, metavar="N", help="the newest N steps stay")
    kind.add_argument("--keep-every", type=int, default=0, metavar="M", help="and every step that M divides")
    kind.add_argument("--dry-run", action="store_true", help="only tell what would be removed")
    kind.add_argument(
        "--lease",
        type=float,
        default=float(CheckpointConfig.owner_lease_seconds),
        metavar="SECONDS",
        help="how long to watch for a sign of life of an owner on another host",
    )


def _list(storage: Storage, options: argparse.Namespace) -> int:
    entries = take_stock(storage)
    if options.json:
        owner = ownership.read_owner(storage)
        told = {"owner": asdict(owner) if owner else None, "steps": [_told(entry) for entry in entries]}
        _write(json.dumps(told, indent=1))
        return ExitCode.DONE
    _write(f"{'step':>10}  {'state':<9}  {'time':<20}  {'size':>9}  {'ranks':>5}  {'layout':<20}  author")
    for entry in entries:
        _write(_line(entry))
    return ExitCode.DONE


def _verify(storage: Storage, options: argparse.Namespace) -> int:
    counting = (State.COMMITTED, State.DAMAGED)
    entries = [entry for entry in take_stock(storage) if entry.state in counting]
    entries = [entry for entry in entries if options.step in (None, entry.step)]
    if not entries:
        wanted = "no step" if options.step is None else f"no step {options.step}"
        raise BadConfig(f"checkpoint verify: {storage.root} holds {wanted}")
    found = {entry: list(_damage(storage, entry)) for entry in entries}
    if options.json:
        steps = [{"step": entry.step, "damage": damage} for entry, damage in found.items()]
        _write(json.dumps({"steps": steps}, indent=1))
    else:
        for entry, damage in found.items():
            whole = f"{len(entry.files)} files, {_size(entry.bytes)}: every digest is right"
            _write("\n".join(f"step {entry.step}: {text}" for text in damage or [whole]))
    return ExitCode.DATA_MISMATCH if any(found.values()) else ExitCode.DONE


def _damage(storage: Storage, entry: Entry) -> Iterator[str]:
    if entry.state is State.DAMAGED:
        yield entry.note
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # digests are taken outside the interpreter's lock
        yield from filter(None, pool.map(partial(_harm, storage, entry.folder), entry.files))


def _harm(storage: Storage, folder: str, written: Written) -> str:
    try:
        verify_file(storage, folder, written)
    except Damaged as error:
        return str(error)
    except OSError as error:
        return f"{folder}/{written.name}: {error.strerror}"
    return ""


def _prune(storage: Storage, options: argparse.Namespace) -> int:
    if options.keep < LEAST:
        raise BadConfig(f"checkpoint prune: --keep {options.keep} must be at least {LEAST}")
    owner = ownership.read_owner(storage)
    if owner is not None and ownership.is_live(storage, owner, options.lease):
        raise BadConfig(
            f"checkpoint prune: {storage.root} is in use by job {owner.job} (uid {owner.uid}), "
            f"round {owner.round}, which prunes by itself (checkpoint.keep)"
        )
    entries = take_stock(storage)
    committed = [entry for entry in entries if entry.state is State.COMMITTED]
    going = [entry for entry in entries if entry.state is State.OUTDATED]
    for entry in committed[options.keep :]:
        if not (options.keep_every and entry.step % options.keep_every == 0):
            going.append(entry)
    if not options.dry_run:
        for entry in going:
            # First that it counts, then what it is: a crash in between leaves no checkpoint that lies.
            storage.remove(f"{entry.folder}/{layout.MANIFEST}")
            storage.remove_folder(entry.folder)
    size = sum(entry.bytes for entry in going)
    if options.json:
        steps = [entry.step for entry in going]
        _write(json.dumps({"removed": steps, "bytes": size, "dry_run": options.dry_run}))
    else:
        done = "would be removed" if options.dry_run else "removed"
        names = ", ".join(str(step) for step in sorted(entry.step for entry in going))
        _write(f"{done}: {names or 'nothing'} ({_size(size)})")
    return ExitCode.DONE


def _line(entry: Entry) -> str:
    when = datetime.fromtimestamp(entry.time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if entry.time else ""
    author = f"{entry.job}, round {entry.round}" if entry.job else entry.folder
    note = f"  {entry.note}" if entry.note else ""
    return (
        f"{entry.step:>10}  {entry.state.value:<9}  {when:<20}  {_size(entry.bytes):>9}  "
        f"{entry.ranks or '':>5}  {entry.layout:<20}  {author}{note}"
    )


def _told(entry: Entry) -> dict[str, object]:
    told = asdict(entry)
    del told["files"]
    return {**told, "state": entry.state.value}


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _write(text: str) -> None:
    sys.stdout.write(text + "\n")
