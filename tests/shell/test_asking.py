"""What `rerail nodes` and `rerail ledger JOB` say where the API server cannot be asked: one line, and what to do."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from rerail_operator.shell.cli import main
from tests.shell.fake_api import fake_api, reply, status

COMMANDS = {"nodes": ["nodes"], "ledger": ["ledger", "gpt"]}
Ground = Callable[[Path], list[str]]


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person without any kubeconfig, outside of a pod."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)


def config(folder: Path, content: object) -> str:
    path = folder / "config"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return str(path)


def kubeconfig(folder: Path, server: str = "http://127.0.0.1:9") -> str:
    return config(
        folder,
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": {"server": server}}],
            "users": [{"name": "jane", "user": {}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "jane"}}],
        },
    )


def nothing(folder: Path) -> list[str]:
    return []


def missing(folder: Path) -> list[str]:
    return ["--kubeconfig", str(folder / "none")]


def named_by_the_variable(folder: Path) -> list[str]:
    os.environ["KUBECONFIG"] = str(folder / "gone")
    return []


def is_a_folder(folder: Path) -> list[str]:
    return ["--kubeconfig", str(folder)]


def unknown_context(folder: Path) -> list[str]:
    return ["--kubeconfig", kubeconfig(folder), "--context", "labor"]


def no_yaml(folder: Path) -> list[str]:
    return ["--kubeconfig", config(folder, "a: [\n")]


def unfinished(folder: Path) -> list[str]:
    return ["--kubeconfig", config(folder, {"apiVersion": "v1"})]


def nobody_listens(folder: Path) -> list[str]:
    return ["--kubeconfig", kubeconfig(folder)]


REFUSALS: dict[str, tuple[Ground, tuple[str, ...]]] = {
    "no kubeconfig anywhere": (nothing, (".kube/config does not exist", "--kubeconfig FILE")),
    "the file that is named is not there": (missing, ("none does not exist", "--kubeconfig FILE")),
    "the variable names a file that is not there": (
        named_by_the_variable,
        ("gone does not exist", "KUBECONFIG"),
    ),
    "a folder": (is_a_folder, ("Is a directory", "kubectl config view")),
    "a context that is not there": (unknown_context, ("labor", "kubectl config get-contexts")),
    "no YAML": (no_yaml, ("expected the node content", "kubectl config view")),
    "half a kubeconfig": (unfinished, ("current-context", "kubectl config view")),
    "an API server that is away": (nobody_listens, ("no answer from the API server", "kubectl cluster-info")),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("sentence", REFUSALS)
def test_one_line_says_what_to_do(
    sentence: str,
    command: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KUBECONFIG", "")
    ground, words = REFUSALS[sentence]
    assert main([*COMMANDS[command], *ground(tmp_path)]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith(f"rerail {command}: ") and told.err.count("\n") == 1
    for part in words:
        assert part in told.err


@pytest.mark.parametrize("command", COMMANDS)
async def test_a_person_without_the_right_is_told_which_one_is_missing_and_not_of_the_operators_role(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = 'configmaps is forbidden: User "jane" cannot get resource "configmaps" in API group ""'
    async with fake_api(reply(403, status(403, words, "Forbidden"))) as api:
        named = ["--kubeconfig", str(api.kubeconfig(tmp_path / "config"))]
        assert await asyncio.to_thread(main, [*COMMANDS[command], *named]) == 2
    told = capsys.readouterr().err
    assert 'User "jane" cannot get' in told and "operator's role" not in told and told.count("\n") == 1
    assert "ask for that right" in told


@pytest.mark.parametrize("command", COMMANDS)
def test_without_the_packages_that_speak_to_an_api_server_the_line_names_them(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "kubernetes"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    assert main([*COMMANDS[command], "--kubeconfig", kubeconfig(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "pip install kubernetes" in told and told.count("\n") == 1


async def test_ctrl_c_while_the_api_server_is_asked_is_one_word_and_exit_code_130(tmp_path: Path) -> None:
    asked, silent = asyncio.Event(), asyncio.Event()

    async def never(_request: object) -> object:
        asked.set()
        await silent.wait()
        raise AssertionError

    async with fake_api(never) as api:  # type: ignore[arg-type]
        named = ["--kubeconfig", str(api.kubeconfig(tmp_path / "config"))]
        command = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "rerail_operator.shell.cli", "nodes", *named,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(60):
            await asked.wait()
            command.send_signal(signal.SIGINT)
            out, error = await command.communicate()
        silent.set()
    assert (command.returncode, out, error) == (130, b"", b"rerail nodes: interrupted\n")
