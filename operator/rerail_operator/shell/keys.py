"""How the shell calls a job: namespace and name."""

from typing import NamedTuple


class JobKey(NamedTuple):
    """The key of a TrainingJob in queues and indexes."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"
