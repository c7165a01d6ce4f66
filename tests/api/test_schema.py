"""The CRD: current, structural, bounded, described; its fields are a frozen list."""

import subprocess
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import BaseModel, Field

from rerail_api.contract import ANNOTATION_SCHEMA_HASH
from rerail_api.crd import FILES, crd, crd_yaml, main, open_api_schema, schema_hash
from rerail_api.schema import structural_schema
from tests.api.examples import CHECKOUT

FIELDS = Path(__file__).parent / "fields.txt"
STRUCTURAL = {
    *("type", "format", "description", "default", "enum", "required", "properties", "items"),
    *("additionalProperties", "minimum", "maximum", "minLength", "maxLength", "pattern"),
    *("minItems", "maxItems", "maxProperties", "x-kubernetes-validations", "x-kubernetes-list-type"),
    *("x-kubernetes-list-map-keys", "x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields"),
}
# A measured number may be anything that is a number.
UNBOUNDED = {"status.progress.loss", "status.progress.firstLoss"}


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema in the schema, with the path of what it describes."""
    yield path, schema
    for name, part in schema.get("properties", {}).items():
        yield from nodes(part, f"{path}.{name}".lstrip("."))
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        yield from nodes(schema["additionalProperties"], f"{path}.*")


OURS = [(path, node) for path, node in nodes(open_api_schema()) if path.startswith(("spec", "status"))]


@pytest.mark.parametrize("file", FILES)
def test_written_files_are_current(file: str) -> None:
    assert (CHECKOUT / file).read_text() == crd_yaml()


def test_check_tells_a_stale_file_and_write_mends_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check = ["--check", "--root", str(tmp_path)]
    assert main(check) == 1
    assert FILES[0] in capsys.readouterr().err
    assert main(["--write", "--root", str(tmp_path)]) == 0
    assert main(check) == 0
    (tmp_path / FILES[1]).write_text("edited")
    assert main(check) == 1


def test_only_structural_keywords() -> None:
    assert {key for _, node in nodes(open_api_schema()) for key in node} <= STRUCTURAL
    for path, node in nodes(open_api_schema()):
        assert "type" in node or node.get("x-kubernetes-int-or-string"), path
        assert not ({"properties", "additionalProperties"} <= set(node)), path
        assert node.get("default", "") is not None, path


def test_every_field_says_what_it_is() -> None:
    assert [
        path for path, node in OURS if not path.endswith(("[]", ".*")) and not node.get("description")
    ] == []


def test_everything_is_bounded() -> None:
    loose = [path for path, node in OURS if path not in UNBOUNDED and not _bounded(node)]
    assert loose == []


def _bounded(node: dict[str, Any]) -> bool:
    match node.get("type"):
        case "string":
            return bool({"enum", "format", "maxLength"} & set(node))
        case "integer":
            return {"minimum", "maximum"} <= set(node)
        case "number":
            return "minimum" in node
        case "array":
            return "maxItems" in node
        case "object":
            return "additionalProperties" not in node or "maxProperties" in node
        case "boolean":
            return True
    return {"minimum", "maximum", "pattern"} <= set(node)


def test_the_fields_are_the_frozen_list() -> None:
    """Adding a field is a deliberate edit of fields.txt; removing or renaming one breaks people."""
    now = [f"{path} {node.get('type', 'integer or string')}" for path, node in OURS]
    assert now == FIELDS.read_text().splitlines()


def test_optional_objects_are_defaulted_so_that_their_fields_are() -> None:
    spec = open_api_schema()["properties"]["spec"]["properties"]
    assert spec["checkpoint"]["default"] == {"path": "/checkpoints", "resume": "Auto", "graceSeconds": 120}
    ladder = {
        "inPlace": {"limit": 2, "deadlineSeconds": 60},
        "swap": {"limit": 3, "deadlineSeconds": 300},
        "recreate": {"limit": 2, "deadlineSeconds": 600},
    }
    assert spec["failurePolicy"]["default"] == {"maxRestarts": 10, "rules": [], "ladder": ladder}
    assert "default" not in open_api_schema()["properties"]["status"]


def test_names_columns_and_hash() -> None:
    manifest = yaml.safe_load(crd_yaml())
    assert manifest["metadata"]["annotations"] == {ANNOTATION_SCHEMA_HASH: schema_hash()}
    assert manifest["spec"]["names"]["shortNames"] == ["tj"]
    version = manifest["spec"]["versions"][0]
    assert version["subresources"] == {"status": {}}
    columns = {c["name"]: c.get("priority", 0) for c in version["additionalPrinterColumns"]}
    wide = {"Round", "Checkpoint", "ETTR"}
    assert columns == {
        name: int(name in wide)
        for name in ("Phase", "Reason", "Ready", "Restarts", "Step", "Round", "Checkpoint", "ETTR", "Age")
    }
    known = {path for path, _ in nodes(open_api_schema())}
    for column in version["additionalPrinterColumns"]:
        assert column["jsonPath"] == ".metadata.creationTimestamp" or column["jsonPath"][1:] in known


def test_the_crd_fits_client_side_apply() -> None:
    # kubectl apply keeps the manifest in an annotation; all annotations together may be 256 KiB.
    assert len(yaml.safe_dump(crd())) < 200_000


class Colour(Enum):
    RED = "red"


CONSTRUCTS = {
    "a union of two objects": dict[str, int] | list[int],
    "int or any text": int | str,
    "a fixed tuple": tuple[int, str],
    "a set": set[int],
    "an exclusive bound": Annotated[int, Field(gt=0)],
    "a key pattern": dict[Annotated[str, Field(pattern="^a$")], int],
    "bytes": bytes,
    "anything": Any,
    "a uuid": __import__("uuid").UUID,
}


@pytest.mark.parametrize("annotation", CONSTRUCTS.values(), ids=CONSTRUCTS)
def test_a_construct_without_structural_form_stops_the_generation(annotation: Any) -> None:
    class Holder(BaseModel):
        field: annotation

    with pytest.raises(TypeError, match=r"Holder\.field"):
        structural_schema(Holder)


def test_constructs_with_a_structural_form() -> None:
    class Part(BaseModel):
        """A part."""

        a: int = 1

    class Holder(BaseModel):
        maybe: int | None = None
        part: Part = Field(default=Part(), description="Mine.")
        word: Literal["x"]
        colour: Colour = Colour.RED
        either: Annotated[int, Field(ge=1, le=2)] | Literal["auto"] = "auto"
        free: dict[str, Any]

    assert structural_schema(Holder)["properties"] == {
        "maybe": {"type": "integer"},
        "part": {
            "description": "Mine.",
            "type": "object",
            "default": {"a": 1},
            "properties": {"a": {"type": "integer", "default": 1}},
        },
        "word": {"type": "string", "enum": ["x"]},
        "colour": {"type": "string", "default": "red", "enum": ["red"]},
        "either": {
            "default": "auto",
            "maximum": 2,
            "minimum": 1,
            "pattern": "^auto$",
            "x-kubernetes-int-or-string": True,
        },
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
    }


def test_the_contract_imports_the_standard_library_only() -> None:
    code = (
        "import sys; sys.path.insert(0, 'operator'); import rerail_api, rerail_api.contract;"
        "print(sorted({m.split('.')[0] for m in sys.modules} - set(sys.stdlib_module_names)))"
    )
    shown = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "['__main__', 'rerail_api']"
