"""The entry point: reads settings, sets up the process, runs the operator until told to stop."""

import asyncio
import gc
import logging
import os
import resource
import signal
import sys

from .cluster import ClusterError
from .kube.client import KubeCluster
from .logs import set_up_logging
from .settings import BadSettings, Settings, read_settings
from .wiring import Operator

log = logging.getLogger(__name__)

OK, FAILED, BAD_INPUT = 0, 1, 2
# Records are kept for long: look less often for cycles among them.
GC_THRESHOLD = (50_000, 20, 50)


def main() -> int:
    """Run until told to stop. 0: ended in order; 1: could not go on; 2: settings that cannot be used."""
    try:
        settings = read_settings(os.environ)
    except BadSettings as error:
        sys.stderr.write(f"{error}\n")
        return BAD_INPUT
    set_up_logging(settings.log_level, settings.log_format)
    for sentence in settings.unknown:
        log.warning("%s", sentence)
    raise_descriptor_limit()
    gc.set_threshold(*GC_THRESHOLD)
    try:
        return asyncio.run(_operate(settings))
    except (ClusterError, OSError) as error:
        log.critical("the operator cannot start: %s", error)
        return FAILED


def raise_descriptor_limit() -> None:
    """One descriptor per agent: take all that we may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _operate(settings: Settings) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with KubeCluster.from_environment() as cluster:
        operator = Operator(settings, cluster, stop)
        try:
            await operator.run()
        finally:
            await operator.shut_down()
    return FAILED if operator.failed else OK
