"""The rig: images from a Dockerfile into nodes, sending only what is missing."""

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.cluster.rig import (
    ControlPlane,
    Options,
    images,
    paths,
    seeds,
    storage,
    versions,
)
from tests.cluster.rig_pods import await_phase, pod


@pytest.fixture(scope="module")
def real() -> Iterator[ControlPlane]:
    with ControlPlane(Options(isolated=True)) as cluster:
        cluster.real_nodes(1, gpus=8)
        yield cluster


def dockerfile(folder: Path, note: str) -> Path:
    """A checkout whose image differs from another one's in its last layer only."""
    folder.mkdir(exist_ok=True)
    (folder / "note").write_text(note)
    (folder / "Dockerfile").write_text(
        "ARG BASE_IMAGE\n"
        "FROM ${BASE_IMAGE} AS noted\n"
        "RUN python -c \"import pathlib; pathlib.Path('/made').write_text('made')\"\n"
        "COPY note /note\n"
        "USER 65532\n"
    )
    return folder


def build(folder: Path) -> storage.StoredImage:
    return images.build_images(folder, targets=("noted",))["noted"]


def note_of(cluster: ControlPlane, image: storage.StoredImage) -> str:
    """What a pod of this image finds in it."""
    show = ["python", "-c", "print(open('/note').read(), open('/made').read(), __import__('os').getuid())"]
    container = {"image": image.name, "command": show, "args": [], "resources": {}}
    cluster.apply(pod("noted", container=container))
    await_phase(cluster, "noted", "Succeeded")
    said = cluster.kubectl("logs", "noted").strip()
    cluster.kubectl("delete", "pod", "noted")
    return said


def test_of_replaced_builds_only_what_a_named_image_builds_on_stays(tmp_path: Path) -> None:
    def image(name: str, layer: str, day: int, *names: str) -> dict[str, object]:
        return {
            "id": name,
            "layer": layer,
            "created": f"2026-01-{day:02}T00:00:00.123456789Z",
            "names": names,
        }

    stacked = [{"id": "base"}, {"id": "torch", "parent": "base"}, {"id": "code", "parent": "torch"}]
    other = [{"id": "old-torch", "parent": "base"}, {"id": "old-code", "parent": "old-torch"}]
    kept = [
        image("named", "code", 9, "localhost/it:dev"),
        image("step", "torch", 1),
        image("young", "old-code", 9),
    ]
    gone = [image("old-step", "old-torch", 1), image("old", "old-code", 2)]
    for part, content in (("layers", stacked + other), ("images", kept + gone)):
        (tmp_path / f"overlay-{part}").mkdir()
        (tmp_path / f"overlay-{part}" / f"{part}.json").write_text(json.dumps(content))
    assert storage.stale(tmp_path, datetime(2026, 1, 8, tzinfo=UTC)) == ["old", "old-step"]


@pytest.mark.realnodes
class TestImages:
    def test_an_unchanged_image_is_not_built_again(self, tmp_path: Path) -> None:
        assert build(dockerfile(tmp_path, "same")).identity == build(dockerfile(tmp_path, "same")).identity

    def test_layers_are_put_together_byte_for_byte(self, tmp_path: Path) -> None:
        for layer in build(dockerfile(tmp_path, "bytes")).layers:
            content = hashlib.sha256()
            for chunk in layer.content():
                content.update(chunk)
            assert f"sha256:{content.hexdigest()}" == layer.digest

    def test_an_archive_is_whole(self, tmp_path: Path) -> None:
        image = build(dockerfile(tmp_path, "archived"))
        with tarfile.open(images.write_archive(image, tmp_path / "image.tar")) as archived:
            names = set(archived.getnames())
        assert {f"blobs/{layer.digest.replace(':', '/')}" for layer in image.layers} < names

    def test_a_running_node_takes_an_image_and_then_only_what_changed(
        self, real: ControlPlane, tmp_path: Path
    ) -> None:
        nodes = real.nodes
        assert nodes is not None
        first = build(dockerfile(tmp_path, "first"))
        nodes.import_image(first)
        assert note_of(real, first) == "first made 65532"
        second = build(dockerfile(tmp_path, "second"))
        sent = io.BytesIO()
        present = nodes.stacks("node-1")
        assert {layer.chain for layer in first.layers} <= present
        second.write(sent, present)
        assert len(sent.getvalue()) < 2**16 < sum(layer.size for layer in second.layers)
        nodes.import_image(second)
        assert note_of(real, second) == "second made 65532"

    def test_nodes_start_with_images_of_which_only_changes_are_unpacked(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(seeds, "FOLDER", f"seeds-{tmp_path.name}")
        layers = paths.cache() / seeds.FOLDER / f"containerd-{versions.CONTAINERD}" / seeds.LAYERS
        unpacked: dict[str, list[str]] = {}
        try:
            for note in ("old", "new"):
                image = build(dockerfile(tmp_path, note))
                with ControlPlane(Options(isolated=True)) as cluster:
                    cluster.real_nodes(1, gpus=1, images=[image])
                    assert note_of(cluster, image) == f"{note} made 65532"
                unpacked[note] = sorted(path.name for path in layers.iterdir())
        finally:
            shutil.rmtree(paths.cache() / seeds.FOLDER, ignore_errors=True)
        # One layer came, and the one that it replaces went, as no other rig used it.
        old, new = set(unpacked["old"]), set(unpacked["new"])
        assert (len(new - old), len(old - new)) == (1, 1) and len(new) == len(image.layers)
