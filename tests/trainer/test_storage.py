"""One suite for the Storage protocol: a folder, fsspec's memory and local stores, and a real S3 server."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rerail_trainer.checkpoint.storage import Storage, open_storage
from rerail_trainer.failures import BadConfig

from .s3server import S3Server, s3_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(
    params=["posix", "memory", "file", pytest.param("s3", marks=pytest.mark.controlplane)],
)
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    if request.param == "s3":
        running = request.getfixturevalue("server")
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        return open_storage(running.url(tmp_path.name))
    roots = {"posix": str(tmp_path), "memory": f"memory://{tmp_path.name}", "file": f"file://{tmp_path}"}
    return open_storage(roots[request.param])


def test_what_is_written_is_read_back_whole_and_in_part(storage: Storage) -> None:
    storage.make_folder("a")
    assert storage.write("a/f", [b"abc", memoryview(b"defg")]) == 7
    assert storage.read("a/f") == b"abcdefg"
    assert storage.read("a/f", 2, 3) == b"cde"
    assert storage.read("a/f", 3, 0) == b""
    assert storage.size("a/f") == 7
    assert (storage.names(""), storage.names("a"), storage.names("nowhere")) == (["a"], ["f"], [])


def test_a_folder_moves_in_one_act_with_all_that_is_in_it(storage: Storage) -> None:
    for folder in ("w", "w/1", "w/1/s"):
        storage.make_folder(folder)
    storage.write("w/1/s/f", [b"x"])
    storage.rename("w/1/s", "step")
    assert (storage.read("step/f"), storage.names("w/1")) == (b"x", [])
    storage.rename("w/1", "w/aside")
    assert storage.names("w") == ["aside"]


def test_nothing_is_made_where_the_folder_above_has_gone(storage: Storage) -> None:
    """This is the fence: a round whose work folder was moved aside cannot write there any more."""
    storage.make_folder("w")
    storage.make_folder("w/1")
    storage.rename("w/1", "w/aside")
    with pytest.raises(FileNotFoundError):
        storage.make_folder("w/1/s")
    with pytest.raises(FileNotFoundError):
        storage.write("w/1/f", [b"x"])
    with pytest.raises(FileNotFoundError):
        storage.rename("w/1/s", "step")


def test_a_name_that_is_taken_is_taken(storage: Storage) -> None:
    for folder in ("a", "b"):
        storage.make_folder(folder)
        storage.write(f"{folder}/f", [folder.encode()])
    with pytest.raises(FileExistsError):
        storage.make_folder("a")
    with pytest.raises(OSError):
        storage.rename("a", "b")
    assert (storage.read("a/f"), storage.read("b/f")) == (b"a", b"b")


def test_replacing_leaves_the_new_content_and_nothing_else(storage: Storage) -> None:
    storage.replace("record", b"old")
    storage.replace("record", b"new")
    assert (storage.read("record"), storage.names("")) == (b"new", ["record"])


def test_removing_is_quiet_about_what_is_not_there(storage: Storage) -> None:
    storage.make_folder("a")
    storage.make_folder("a/b")
    storage.write("a/b/f", [b"x"])
    storage.remove("a/none")
    storage.remove_folder("none")
    storage.remove_folder("a")
    assert storage.names("") == []
    with pytest.raises(FileNotFoundError):
        storage.read("a/b/f")


def test_a_beat_moves_the_time_of_a_record(storage: Storage) -> None:
    storage.replace("record", b"x")
    before = storage.last_beat("record")
    deadline = time.monotonic() + 10
    while storage.last_beat("record") == before:  # some stores count whole seconds
        assert time.monotonic() < deadline
        storage.beat("record")
        time.sleep(0.05)
    assert storage.read("record") == b"x"
    with pytest.raises(FileNotFoundError):
        storage.last_beat("none")


@pytest.mark.parametrize("storage", ["memory", "file"], indirect=True)
def test_a_crash_in_the_middle_of_a_commit_loses_neither_the_step_nor_its_objects(storage: Storage) -> None:
    """The link of the step is put, the link in the work folder not yet deleted; later that folder is swept."""
    for folder in ("w", "w/1", "w/1/s"):
        storage.make_folder(folder)
    storage.write("w/1/s/f", [b"x"])
    storage.rename("w/1/s", "step")
    # What the crash would have left: the second name for the same folder.
    target = storage._target(storage._object("", "step.folder"))  # type: ignore[attr-defined]
    storage._create(storage._object("w/1", "s.folder"), target)  # type: ignore[attr-defined]
    storage.remove_folder("w")
    assert storage.read("step/f") == b"x"


def test_a_url_without_its_driver_says_what_to_install() -> None:
    with pytest.raises(BadConfig, match=r"nosuch://bucket/x cannot be opened"):
        open_storage("nosuch://bucket/x")
