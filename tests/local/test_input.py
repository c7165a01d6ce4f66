"""What a person can write wrong, and what `rerail run` answers: file, line, and what to write instead."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from rerail_operator.shell.cli import main
from rerail_operator.shell.local.inject import BadFault, Fault, FaultKind, Gang, Schedule, parse_fault
from rerail_operator.shell.local.preparation import BadRun, RunOptions, prepare
from rerail_operator.shell.manifest import BadManifest, read_manifest

pytestmark = pytest.mark.local

GOOD = """\
apiVersion: rerail.dev/v1alpha1
kind: TrainingJob
metadata: {name: demo}
spec:
  numNodes: 2
  numProcPerNode: 2
  template:
    spec:
      containers:
      - name: trainer
        image: any
        command: [python, train.py]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_good_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    manifest = read_manifest(write(tmp_path, GOOD))
    assert manifest.job.metadata.name == "demo"
    assert manifest.raw["spec"]["numNodes"] == 2
    assert manifest.ignored == ()


BAD_MANIFESTS = {
    "an unknown field names the nearest": (
        GOOD.replace("numNodes", "numNode"),
        ["job.yaml:5: spec.numNode", "did you mean numNodes?"],
    ),
    "a wrong type": (GOOD.replace("numNodes: 2", "numNodes: two"), ["job.yaml:5: spec.numNodes"]),
    "an impossible size": (GOOD.replace("numNodes: 2", "numNodes: 0"), ["job.yaml:5: spec.numNodes"]),
    "no command": (
        GOOD.replace("        command: [python, train.py]\n", ""),
        ["job.yaml:", "command"],
    ),
    "no trainer container": (GOOD.replace("name: trainer", "name: main"), ["job.yaml:", "trainer"]),
    "another kind": (GOOD.replace("TrainingJob", "Job"), ["holds no TrainingJob", "found: Job demo"]),
    "two jobs": (GOOD + "---\n" + GOOD, ["holds 2 TrainingJobs", "one job per file"]),
    "not YAML": (GOOD + "  broken: [1, 2\n", ["job.yaml:", "not YAML"]),
    "an empty file": ("", ["holds no TrainingJob (found: nothing)"]),
    "only a list": ("- 1\n- 2\n", ["holds no TrainingJob"]),
}


@pytest.mark.parametrize("case", BAD_MANIFESTS)
def test_a_bad_manifest_is_refused_with_file_and_line(case: str, tmp_path: Path) -> None:
    text, wanted = BAD_MANIFESTS[case]
    with pytest.raises(BadManifest) as refused:
        read_manifest(write(tmp_path, text))
    for part in wanted:
        assert part in str(refused.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadManifest, match=r"nowhere\.yaml: there is no such file"):
        read_manifest(tmp_path / "nowhere.yaml")


def test_other_documents_of_the_file_are_left_aside_by_name(tmp_path: Path) -> None:
    both = GOOD + "---\nkind: ConfigMap\nmetadata: {name: script}\n"
    assert read_manifest(write(tmp_path, both)).ignored == ("ConfigMap script",)


GANG = Gang(num_nodes=2, nproc=2)

FAULTS = {
    "kill:rank=3,step=40": Fault(FaultKind.KILL, 3, 40),
    "kill:step=0,rank=0": Fault(FaultKind.KILL, 0, 0),
    "hang:rank=3,step=40": Fault(FaultKind.HANG, 3, 40),
    "stop:node=1,step=40": Fault(FaultKind.STOP, 1, 40),
    " lose : node = 0 , step = 7 ": Fault(FaultKind.LOSE, 0, 7),
}


@pytest.mark.parametrize("text", FAULTS)
def test_a_fault_is_read(text: str) -> None:
    assert parse_fault(text, GANG) == FAULTS[text]


BAD_FAULTS = {
    "kil:rank=3,step=40": "did you mean kill?",
    "": "unknown fault",
    "kill": "missing",
    "kill:rank=3": "step missing",
    "kill:step=3": "rank missing",
    "kill:node=1,step=40": "unknown key 'node'; this fault takes rank and step",
    "kill:rank=x,step=40": "rank is 'x'; write a whole number",
    "kill:rank=-1,step=40": "write a whole number",
    "kill:rank=1,rank=2,step=40": "rank is there twice",
    "kill:rank=4,step=40": "the job has 4 ranks: write rank=0 to rank=3",
    "stop:node=2,step=1": "the job has 2 nodes: write node=0 to node=1",
}


@pytest.mark.parametrize("text", BAD_FAULTS)
def test_a_bad_fault_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(BadFault) as refused:
        parse_fault(text, GANG)
    assert BAD_FAULTS[text] in str(refused.value)


def test_a_fault_is_due_once_and_in_order() -> None:
    first, second, late = (
        Fault(FaultKind.KILL, 0, 5),
        Fault(FaultKind.STOP, 1, 3),
        Fault(FaultKind.KILL, 1, 9),
    )
    schedule = Schedule([first, second, late])
    assert schedule.due(2) == []
    assert schedule.due(6) == [first, second]
    assert schedule.due(6) == []
    assert schedule.due(100) == [late]


BAD_RUNS = {
    "suspended": (
        GOOD.replace("  numNodes: 2\n", "  numNodes: 2\n  suspend: true\n"),
        (),
        "spec.suspend is true",
    ),
    "too large": (GOOD.replace("numNodes: 2", "numNodes: 1000"), (), "2000 processes"),
    "too many spares": (
        GOOD.replace("numNodes: 2", "numNodes: 2\n  spares: 95"),
        (),
        "2 nodes and 95 spares; this machine is asked for at most 96 pods: lower spares or numNodes",
    ),
    "a fault out of range": (GOOD, ("kill:rank=9,step=1",), "the job has 4 ranks"),
}


@pytest.mark.parametrize("case", BAD_RUNS)
def test_a_run_that_cannot_start_says_why(case: str, tmp_path: Path) -> None:
    text, faults, wanted = BAD_RUNS[case]
    with pytest.raises(BadRun, match=wanted):
        prepare(RunOptions(write(tmp_path, text), inject=faults), ("nvidia.com/gpu",))


@pytest.mark.parametrize("word", ["report", "snapshot"])
def test_a_file_that_could_not_be_written_is_refused_before_the_run(word: str, tmp_path: Path) -> None:
    nowhere = {word: tmp_path / "no" / "such" / "folder.json"}
    with pytest.raises(BadRun, match=rf"--{word} .*folder\.json: cannot be written: No such file"):
        prepare(replace(RunOptions(write(tmp_path, GOOD)), **nowhere), ())  # type: ignore[arg-type]


def test_a_workdir_that_cannot_be_made_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = write(tmp_path, GOOD)
    assert main(["run", str(job), "--workdir", str(job / "work")]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1
    assert "job.yaml/work: Not a directory; name a folder that you may write to" in told.err


def test_a_saved_world_may_name_the_bad_conditions_of_nodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    conditions = [{"type": kind, "status": "True"} for kind in ("Ready", "KernelDeadlock")]
    status = {"conditions": conditions, "allocatable": {"pods": "110"}}
    node = {"metadata": {"name": "n1", "uid": "n1"}, "status": status}
    world = {
        "now": "2026-11-23T10:00:00Z",
        "nodes": [node],
        "job": yaml.safe_load(GOOD),
        "operator": {"badNodeConditions": ["KernelDeadlock"]},
    }
    assert main(["explain", str(write(tmp_path, yaml.safe_dump(world)))]) == 0
    assert "1 has the condition KernelDeadlock" in capsys.readouterr().out


NO_FILES = {
    "a file that is not there": ("gone", "gone: there is no such file; name "),
    "a folder": (".", ": is a folder; name "),
    "no text": ("binary", "binary: cannot be read: it is no text; name "),
    "no YAML": ("broken", "broken:2:1: not YAML: expected the node content"),
}


@pytest.mark.parametrize("command", [["run"], ["explain"], ["ledger", "--report"]])
@pytest.mark.parametrize("sentence", NO_FILES)
def test_a_file_that_cannot_be_read_is_one_line_with_its_place(
    sentence: str, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "broken").write_text("a: [\n", encoding="utf-8")
    name, words = NO_FILES[sentence]
    assert main([*command, str(tmp_path / name)]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and words in told.err


def test_a_lost_node_gets_a_node_to_replace_it(tmp_path: Path) -> None:
    faults = ("lose:node=1,step=3", "kill:rank=0,step=1")
    prepared = prepare(RunOptions(write(tmp_path, GOOD), inject=faults), ())
    assert prepared.num_nodes == 3


@pytest.mark.parametrize("example", ["01-recover", "02-plain-pytorch", "03-torchrun"])
def test_every_example_is_a_run(example: str) -> None:
    manifest = Path(__file__).parents[2] / "examples" / example / "job.yaml"
    assert prepare(RunOptions(manifest), ("nvidia.com/gpu",)).gang.num_nodes == 2
