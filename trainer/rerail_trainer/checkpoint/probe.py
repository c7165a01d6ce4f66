"""Before step 1: can this process use the checkpoint folder, and is it the same folder on every node?"""

import errno
import os
import time
from collections.abc import Callable
from contextlib import suppress

from rerail_api.contract import ExitCode
from rerail_trainer.failures import BadConfig, TrainerExit

from . import layout
from .storage import Storage, is_url

_SEEN_WITHIN_SECONDS = 15.0
"""A network file system may take some seconds to show a new name to other hosts."""
_POLL_SECONDS = 0.1


def probe(storage: Storage) -> None:
    """Does once what every save will do.

    Raises BadConfig with uid, path, reason and what to set; RETRY_IN_PLACE for a full disk.
    """
    folder, moved = layout.unique(".probe"), layout.unique(".probe-moved")
    steps: tuple[tuple[str, Callable[[], object]], ...] = (
        ("make a folder in", lambda: storage.make_folder(folder)),
        ("write and sync a file in", lambda: storage.write(f"{folder}/file", [b"probe"])),
        ("rename a folder in", lambda: storage.rename(folder, moved)),
        ("remove a file in", lambda: storage.remove(f"{moved}/file")),
    )
    try:
        for what, act in steps:
            try:
                act()
            except OSError as error:
                raise _cannot(what, storage.root, error) from error
    finally:
        with suppress(OSError):
            storage.remove_folder(folder)
            storage.remove_folder(moved)


def open_root(path: str) -> None:
    """Makes the folder itself where it is missing; BadConfig as `probe` raises it."""
    if path.startswith("memory://"):
        raise BadConfig(
            f"checkpoint.dir={path}: what memory:// holds lives in one process, and a save has two"
        )
    if is_url(path):
        return  # an object store has no folders that somebody makes first
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise _cannot("make", path, error) from error


def sees(storage: Storage, path: str) -> bool:
    """Whether this host sees `path`, which another host has just made,
    within the time a shared folder may take.
    """
    deadline = time.monotonic() + _SEEN_WITHIN_SECONDS
    while not storage.names(path):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _cannot(what: str, path: str, error: OSError) -> TrainerExit:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        # Nothing is configured wrongly, and it may work again: the job must not end for good.
        message = (
            f"cannot {what} the checkpoint folder {path}: {error.strerror}; free space or enlarge the volume"
        )
        return TrainerExit(ExitCode.RETRY_IN_PLACE, message)
    uid, gid = os.geteuid(), os.getegid()
    owner = ""
    with suppress(OSError):
        status = os.stat(path)
        owner = f" (owned by uid {status.st_uid}, gid {status.st_gid}, mode {status.st_mode & 0o7777:o})"
    return BadConfig(
        f"cannot {what} the checkpoint folder {path}{owner} as uid {uid}, gid {gid}: {error.strerror}; "
        f"in a pod set securityContext.fsGroup to a group that may write there, "
        f"for example fsGroup: {gid or 1000}"
    )
