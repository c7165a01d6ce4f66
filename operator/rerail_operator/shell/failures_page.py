"""The reference page of failures, made from the taxonomy in the core.

`python -m rerail_operator.shell.failures_page --write` writes it, `--check` fails when it is not current.
"""

import sys
from typing import Final

from rerail_api.contract import STACKS_SECONDS, TIMED_STEPS
from rerail_api.generated import keep_current
from rerail_operator.core.correction import DISRUPTED_SOON
from rerail_operator.core.elsewhere import DEVICE_SOON
from rerail_operator.core.standstill import AT_LEAST, PHASE
from rerail_operator.core.taxonomy import TABLE, in_words

FILE: Final = "docs/reference/failures.md"

_HEAD: Final = """<!-- Written by `python -m rerail_operator.shell.failures_page --write` from the code. -->
# Failures

What Rerail sees, what it calls it, and what it does. Of several signs the strongest is the root: an ordered
stop before a lost node or container, before a signal, before an exit code of our [table](exit-codes.md) (only
from programs that declare it), before any other exit, before a standstill. Your own rules
(`failurePolicy.rules`) come before this table and see the root only; they match exit codes, so no standstill.

- Answer: the cheapest that can help. *In place*: the ranks start again in the same pods. *New pod*: the
  container is gone and is made anew, on the same node where there is room.
- Charged: counts against `failurePolicy.maxRestarts`, which counts from the last progress.
- Limit: how often the same failure at the same step ends the job, whoever is charged. Before the first step
  it is 2 where every rank of every node ended alike.
- Left alone: how long this job stays away from the node.
- Against the node: whose word it is that the node is to blame. What a job's own processes say concerns that
  job alone, until programs of a second namespace say the same: [strikes](../nodes.md).

| Sign | Class | Answer | Charged | Limit | Left alone | Against the node |
|---|---|---|---|---|---|---|
"""


_HANGS: Final = f"""
## Known later

Until an incident closes it follows what is learned of it, with event `Corrected`: class, charge and counts
change in one write, the restart stays counted once, and the message keeps what was thought first. A lost
container, a silent agent or a rank killed by SIGKILL was out of memory when the kubelet says so; a silent
agent was a lost node when the API server says so; a failure within {DISRUPTED_SOON.seconds} s before the
pod's DisruptionTarget was a preemption or a drain; a failure within {DEVICE_SOON.seconds // 60} minutes
before the kubelet or a condition of the node called a device bad was a GpuFault. What a user's rule has
charged stays charged as it was.

## Bad devices

The cluster itself may speak against a device: the kubelet where a pod's
`status.containerStatuses[].allocatedResourcesStatus[].resources[].health` is Unhealthy (feature gate
`ResourceHealthStatus`, and a device plugin or DRA driver that tells), or a node condition of a type that the
operator is to heed ([badNodeConditions](../from-clone-to-cluster.md#2-install)) and that is True. Such words
come and go, and a restart of a large gang is dear: by themselves they interrupt no rank. What then fails on
that pod or node (a signal, a code, a hang that is blamed on it, the end of its container) is a GpuFault, and
the message tells both. Disruptions, lost or unreachable machines, full memory, bad data and user errors stay
what they are, and your own rules see the exit code as ever. A node with such a condition takes no new pod; a
spare there, or with such a device, goes.

## Hangs

A program that names its phases ([progress lines](../coming-from.md)) hangs when its step does not
change for four times the 99th percentile of its last steps, at least {AT_LEAST.seconds} s, in phase
`train`. Before {TIMED_STEPS} steps of a round are timed, in all other phases, and after the last step
it has {PHASE.seconds // 60} minutes. `failurePolicy.hangSeconds` sets the limit of phase `train`, also
for programs that name no phases, from their first step on. A program that reports nothing is never
hung. An agent that is not heard is no hang, and a new leader counts from when it took over.

Before anything is killed the agents say within {STACKS_SECONDS:.0f} s where their ranks stand; a step
made meanwhile calls it off. Programs that catch SIGUSR1 are taken to print their stacks then, as
`faulthandler.register(signal.SIGUSR1)` does; of others the kernel is asked. Named, and charged, is the
first of:

1. ranks that a signal or a debugger has stopped;
2. ranks that wait in the kernel, for a disk or a driver, while others do not;
3. ranks that never entered the collective in which others wait (the shipped trainer tells it from
   torch's flight recorder; of others the stack must show it);
4. ranks that stand elsewhere than more than half of all;
5. the node that is behind by its own progress;
6. rank 0, and the message says that this is a guess.
"""


def page() -> str:
    """The page as Markdown, in the order of the table; the same table gives the same bytes."""
    return _HEAD + "".join("| " + " | ".join(in_words(row)) + " |\n" for row in TABLE) + _HANGS


def main(arguments: list[str] | None = None) -> int:
    """Write the page, or say that it is not current (exit code 1)."""
    return keep_current("rerail_operator.shell.failures_page", {FILE: page()}, arguments)


if __name__ == "__main__":
    sys.exit(main())
