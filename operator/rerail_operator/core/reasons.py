"""The closed list of reasons: one word for machines, one sentence for people (docs/reference/reasons.md)."""

from enum import StrEnum


class Reason(StrEnum):
    """Why a job stands where it stands, and what an event is about."""

    # standing in line
    INSUFFICIENT_NODES = "InsufficientNodes"
    WAITING_FOR_OLDER_JOB = "WaitingForOlderJob"
    NEVER_FITS = "NeverFits"
    CLUSTER_SETTLING = "ClusterSettling"
    WAITING_FOR_SPARES = "WaitingForSpares"
    WAITING_FOR_OLD_PODS = "WaitingForOldPods"
    KUEUE_NOT_SUPPORTED = "KueueNotSupported"
    INVALID_SPEC = "InvalidSpec"
    TEMPLATE_REJECTED = "TemplateRejected"
    QUOTA_EXCEEDED = "QuotaExceeded"
    RESUMED = "Resumed"
    # starting
    ADMITTED = "Admitted"
    PLACING_PODS = "PlacingPods"
    PLACEMENT_LOST = "PlacementLost"
    UNPLACEABLE = "Unplaceable"
    STARTING_PODS = "StartingPods"
    CONTAINER_WAITING = "ContainerWaiting"
    WAITING_FOR_AGENTS = "WaitingForAgents"
    AT_BARRIER = "AtBarrier"
    BACKING_OFF = "BackingOff"
    RESTART_RATE = "RestartRate"
    RELEASED = "Released"
    # running
    ALL_RANKS_RUNNING = "AllRanksRunning"
    NODES_STARTING = "NodesStarting"
    FAULT_SEEN = "FaultSeen"
    # repairing
    RESTARTING = "Restarting"
    DOMAIN_LOST = "DomainLost"
    RELEASES_DIFFER = "ReleasesDiffer"
    NAME_TAKEN = "NameTaken"
    GAVE_BACK = "GaveBack"
    RUNG_GIVEN_UP = "RungGivenUp"
    SPARE_TAKES_RANK = "SpareTakesRank"
    SPARE_GIVEN_UP = "SpareGivenUp"
    SPEC_CHANGED = "SpecChanged"
    CORRECTED = "Corrected"
    RESOLVED = "Resolved"
    UNRESOLVED = "Unresolved"
    STRAGGLER_SEEN = "StragglerSeen"
    STRAGGLER_GONE = "StragglerGone"
    # suspended
    SUSPENDED = "Suspended"
    SUSPENDING = "Suspending"
    NOT_SUSPENDED = "NotSuspended"
    # the end
    COMPLETED = "Completed"
    USER_RULE = "UserRule"
    USER_ERROR = "UserError"
    REPEATED_FAILURE = "RepeatedFailure"
    RESTART_BUDGET_EXHAUSTED = "RestartBudgetExhausted"
    LADDER_EXHAUSTED = "LadderExhausted"
    STARTUP_DEADLINE_EXCEEDED = "StartupDeadlineExceeded"
    ACTIVE_DEADLINE_EXCEEDED = "ActiveDeadlineExceeded"
    # checkpoints
    VOLUME_IS_DURABLE = "VolumeIsDurable"
    VOLUME_IS_NOT_DURABLE = "VolumeIsNotDurable"


SENTENCES: dict[Reason, str] = {
    Reason.INSUFFICIENT_NODES: "The gang does not fit on the nodes that are free now; it waits in the queue.",
    Reason.WAITING_FOR_OLDER_JOB: "An older job takes the nodes that this one could have.",
    Reason.NEVER_FITS: "No set of this cluster's nodes, even empty, could hold the gang.",
    Reason.CLUSTER_SETTLING: "Jobs that already hold nodes are looked at first after a hand-over.",
    Reason.WAITING_FOR_SPARES: "Spares of other jobs are being stopped to make room for this one.",
    Reason.WAITING_FOR_OLD_PODS: "Pods of an earlier round have not gone yet.",
    Reason.KUEUE_NOT_SUPPORTED: "The job carries Kueue's queue label, which Rerail does not honour yet.",
    Reason.INVALID_SPEC: "The stored spec cannot be run; the message says which field and what to write.",
    Reason.TEMPLATE_REJECTED: "The API server refuses the pod template; the message has its words.",
    Reason.QUOTA_EXCEEDED: "A quota of the namespace refuses the gang's pods; it is tried again.",
    Reason.RESUMED: "The job is no longer suspended and waits for nodes.",
    Reason.ADMITTED: "The gang was given its nodes.",
    Reason.PLACING_PODS: "Pods are being created on their nodes.",
    Reason.PLACEMENT_LOST: "A pod did not get its planned node; it is planned again elsewhere.",
    Reason.UNPLACEABLE: "A node rank has to move and no node has room for it.",
    Reason.STARTING_PODS: "Pods are bound to their nodes and their containers are starting.",
    Reason.CONTAINER_WAITING: "A container cannot start; the message names the pod and the kubelet's reason.",
    Reason.WAITING_FOR_AGENTS: "Containers run; their agents have not all reached the coordinator.",
    Reason.AT_BARRIER: "Agents are at the barrier of the round and wait for the rest.",
    Reason.BACKING_OFF: "The same failure came again; the next start is held back for a while.",
    Reason.RESTART_RATE: "More free restarts than can be chance; the next is held back, no job fails for it.",
    Reason.RELEASED: "The barrier is released: every agent starts its ranks.",
    Reason.ALL_RANKS_RUNNING: "All ranks of all nodes run.",
    Reason.NODES_STARTING: "The barrier is released; not every node runs its ranks yet.",
    Reason.FAULT_SEEN: "Something failed; evidence is collected before the cause is named.",
    Reason.RESTARTING: "The gang restarts from its last checkpoint; the incident says why.",
    Reason.DOMAIN_LOST: "Three or more nodes of one rack, block or zone were lost at once: one incident.",
    Reason.RELEASES_DIFFER: "Two nodes hold different releases of one round; a new round is opened.",
    Reason.NAME_TAKEN: "A pod of the planned name exists already; a new round gives new names.",
    Reason.GAVE_BACK: "The gang could not be completed in time and gave its nodes back.",
    Reason.RUNG_GIVEN_UP: "A repair took too long; the next rung of the ladder is taken.",
    Reason.SPARE_TAKES_RANK: "A spare that stood ready takes the place of a pod that was lost.",
    Reason.SPARE_GIVEN_UP: "A spare makes room for a job that would wait without it.",
    Reason.SPEC_CHANGED: "The spec was changed while suspended; the job starts again from the new one.",
    Reason.CORRECTED: "An incident turned out to be another one; its class, charge and counts follow.",
    Reason.RESOLVED: "The job is past the point at which it was interrupted.",
    Reason.UNRESOLVED: "The job failed, was suspended or hit anew in mid-recovery; what that cost so far.",
    Reason.STRAGGLER_SEEN: "Ranks compute slower than the others, which wait for them at every step.",
    Reason.STRAGGLER_GONE: "Ranks that were named as slow keep up with the others again.",
    Reason.SUSPENDED: "The job is suspended and holds no nodes.",
    Reason.SUSPENDING: "The job is asked to save and stop.",
    Reason.NOT_SUSPENDED: "The job is not suspended.",
    Reason.COMPLETED: "Every rank ended with 0.",
    Reason.USER_RULE: "A rule of the failure policy ends the job for this exit code.",
    Reason.USER_ERROR: "The program says that a restart cannot help (bad configuration, data or checkpoint).",
    Reason.REPEATED_FAILURE: "The same failure came at the same point too often.",
    Reason.RESTART_BUDGET_EXHAUSTED: "More charged restarts without progress than maxRestarts allows.",
    Reason.LADDER_EXHAUSTED: "The gang was recreated as often as the ladder allows, without progress.",
    Reason.STARTUP_DEADLINE_EXCEEDED: "The ranks did not all run within startupDeadlineSeconds.",
    Reason.ACTIVE_DEADLINE_EXCEEDED: "The job was active for longer than activeDeadlineSeconds.",
    Reason.VOLUME_IS_DURABLE: "The checkpoint path lies on a volume that outlives the pod.",
    Reason.VOLUME_IS_NOT_DURABLE: "The checkpoint path lies on no volume, or on one that dies with the pod.",
}
