"""Training with its checkpoints in an object store: the sentences of a folder hold there as well."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rerail_trainer.checkpoint import layout
from rerail_trainer.checkpoint.storage import Storage, open_storage

from .gang import Gang, Yard
from .s3server import S3Server, s3_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


class Bucket:
    """Where the gangs of one test save: a URL, what a client of it needs, and the files behind it."""

    def __init__(self, yard: Yard, url: str, environment: dict[str, str], files: Path) -> None:
        self._yard, self._url, self._environment, self.files = yard, url, environment, files

    def start(self, *words: str, **wishes: Any) -> Gang:
        env = {**self._environment, **wishes.pop("env", {})}
        return self._yard.start(f"--checkpoint.dir={self._url}", *words, env=env, **wishes)

    def run(self, *words: str, **wishes: Any) -> Gang:
        gang = self.start(*words, **wishes)
        assert set(gang.wait()) == {0}, gang.output()
        return gang

    @property
    def storage(self) -> Storage:
        return open_storage(self._url)

    def committed(self) -> list[int]:
        storage = self.storage
        steps = [name for name in storage.names("") if layout.step_of(name) is not None]
        return sorted(layout.step_of(name) or 0 for name in steps if layout.MANIFEST in storage.names(name))


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.controlplane)])
def bucket(request: pytest.FixtureRequest, yard: Yard, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    if request.param == "file":
        return Bucket(yard, f"file://{yard.folder}/bucket", {}, yard.folder / "bucket")
    running = request.getfixturevalue("server")
    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    place = yard.folder.name
    return Bucket(yard, running.url(place), running.environment, running.folder / place)


def resumed(gang: Gang) -> list[Any]:
    return [line["resumed_from"] for line in gang.progress() if "resumed_from" in line]


@pytest.mark.parametrize(
    ("point", "newest"),
    [("all-ranks-written", 4), ("manifest-written", 4), ("committed", 6), ("taken-out", 6), ("pruned", 6)],
)
def test_a_kill_in_a_save_loses_nothing_that_was_committed(
    bucket: Bucket, uninterrupted: dict[int, float], point: str, newest: int
) -> None:
    """Of the third save, the first that has an older step to remove."""
    gang = bucket.start(ranks=2, at={"rank": 0, "point": point, "step": 6, "signal": "SIGKILL"})
    assert gang.end_of(0) == -signal.SIGKILL
    assert (2 in bucket.committed()) == (point not in ("taken-out", "pruned"))
    assert max(bucket.committed()) == newest
    rest = bucket.run(ranks=2)
    assert resumed(rest) == [newest]
    assert rest.losses() == {step: loss for step, loss in uninterrupted.items() if step > newest}
    assert bucket.committed() == [6, 8]


def test_a_flipped_byte_sends_back_to_the_step_before(
    bucket: Bucket, uninterrupted: dict[int, float]
) -> None:
    bucket.run("--train.steps=6", "--optim.horizon_steps=8", ranks=2)
    newest = max(bucket.files.glob(".folders/step-00000006*"))
    victim = newest / layout.tensor_file(1)
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    rest = bucket.run(ranks=2)
    assert resumed(rest) == [4]
    assert rest.losses() == {step: uninterrupted[step] for step in (5, 6, 7, 8)}
    assert any(name.startswith("corrupt-step-00000006") for name in bucket.storage.names(""))


def test_a_zombie_of_an_older_round_cannot_commit(bucket: Bucket, uninterrupted: dict[int, float]) -> None:
    """Frozen right before the commit of step 4, it wakes when the next round has long gone on."""
    identity = {"RERAIL_JOB": "default/job", "RERAIL_JOB_UID": "uid-1"}
    zombie = bucket.start(
        env={**identity, "RERAIL_ROUND": "1"},
        at={"rank": 0, "point": "manifest-written", "step": 4, "signal": "SIGSTOP"},
    )
    zombie.until_frozen(0)
    heir = bucket.start(env={**identity, "RERAIL_ROUND": "2"})
    assert heir.wait() == [0], heir.output()
    before = bucket.committed()
    zombie.signal(signal.SIGCONT)
    assert zombie.wait() != [0]
    assert bucket.committed() == before
    assert heir.losses() == pytest.approx(
        {step: loss for step, loss in uninterrupted.items() if step in heir.losses()}, abs=2e-5
    )


def test_what_is_pruned_leaves_no_object(bucket: Bucket) -> None:
    gang = bucket.run(ranks=2)
    assert bucket.committed() == [6, 8], gang.output()
    assert not list(bucket.files.glob(".folders/step-00000002*/*"))


def test_the_memory_of_one_process_is_no_place_for_several(yard: Yard) -> None:
    gang = yard.start("--checkpoint.dir=memory://nowhere")
    assert gang.wait() == [64]
    assert "memory:// holds lives in one process" in gang.output()
