"""Reads a job manifest from a file and says, with file and line, what is wrong with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rerail_api.contract import API_VERSION, KIND
from rerail_api.v1alpha1 import InvalidJob, TrainingJob, parse_job
from rerail_operator.shell.cluster import Object
from rerail_operator.shell.reading import Unreadable, no_yaml, text_of


class BadManifest(ValueError):
    """A file that holds no usable TrainingJob; the text names file, line and what to write instead."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One TrainingJob as it was written, and as it was understood."""

    path: Path
    raw: Object
    job: TrainingJob
    ignored: tuple[str, ...] = ()  # "ConfigMap train-script": other documents of the file


def read_manifest(path: Path) -> Manifest:
    """The one TrainingJob in a YAML or JSON file. Raises `BadManifest`."""
    trees = _documents(path)
    documents = [(tree, _plain(tree)) for tree in trees]
    jobs = [(tree, raw) for tree, raw in documents if isinstance(raw, dict) and raw.get("kind") == KIND]
    if not jobs:
        kinds = ", ".join(_title(raw) for _, raw in documents) or "nothing"
        raise BadManifest(
            f"{path}: holds no TrainingJob (found: {kinds}); write apiVersion: {API_VERSION} and kind: {KIND}"
        )
    if len(jobs) > 1:
        names = ", ".join(_title(raw) for _, raw in jobs)
        raise BadManifest(f"{path}: holds {len(jobs)} TrainingJobs ({names}); write one job per file")
    tree, raw = jobs[0]
    try:
        job = parse_job(raw)
    except InvalidJob as error:
        lines = [f"{path}:{_line(tree, p.path)}: {p}" for p in error.problems]
        raise BadManifest("\n".join(lines)) from None
    ignored = tuple(_title(other) for _, other in documents if other is not raw)
    return Manifest(path, raw, job, ignored)


def _documents(path: Path) -> list[yaml.Node]:
    try:
        text = text_of(path, "the manifest of a TrainingJob")
        return [tree for tree in yaml.compose_all(text, Loader=yaml.SafeLoader) if tree is not None]
    except Unreadable as error:
        raise BadManifest(str(error)) from None
    except yaml.YAMLError as error:
        raise BadManifest(str(no_yaml(path, error))) from None


def _plain(tree: yaml.Node) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(tree)
    finally:
        loader.dispose()


def _title(raw: Any) -> str:
    if not isinstance(raw, dict):
        return "a document that is no object"
    metadata = raw.get("metadata")
    name = metadata.get("name", "") if isinstance(metadata, dict) else ""
    return f"{raw.get('kind') or 'an object without kind'} {name}".strip()


def _line(tree: yaml.Node, path: str) -> int:
    """The line (from 1) of the deepest part of `path` that is there (`spec.template.spec.containers[0]`)."""
    node, line = tree, tree.start_mark.line
    for part in _parts(path):
        found = _child(node, part)
        if found is None:
            break
        line, node = found
    return line + 1


def _parts(path: str) -> Sequence[str]:
    return [part for part in path.replace("[", ".").replace("]", "").split(".") if part]


def _child(node: yaml.Node, part: str) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == part:
                return key.start_mark.line, value
    if isinstance(node, yaml.SequenceNode) and part.isdigit() and int(part) < len(node.value):
        item = node.value[int(part)]
        return item.start_mark.line, item
    return None
