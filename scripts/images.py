"""`make images REGISTRY=... [TAG=...]`: builds and pushes both images, prints the chart's values.

    python3 scripts/images.py --registry registry.example.com/team > values-images.yaml

Progress goes to standard error, the values, with digests, to standard output. Environment: REGISTRY, TAG, and
the Dockerfile's build arguments BASE_IMAGE, COMPILER, TORCH_INDEX, PIP_INDEX_URL, PIP_TRUSTED_HOST, PIP_CERT;
PLATFORM, as in linux/amd64, where the cluster's processors are others than this machine's.
"""

import argparse
import os
import re
import sys

import demo
import imagetools
from imagetools import Cannot

HOST = r"[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?(:[0-9]+)?"
REGISTRY = re.compile(HOST + r"(/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*")
TAG = re.compile(r"[A-Za-z0-9_][-A-Za-z0-9_.]{0,127}")


def main(arguments):
    parser = argparse.ArgumentParser(prog="images")
    parser.add_argument("--registry", default=os.environ.get("REGISTRY", ""))
    parser.add_argument("--tag", default=os.environ.get("TAG", "") or imagetools.version())
    parser.add_argument("--context", default=imagetools.ROOT, help="folder with the Dockerfile")
    given = parser.parse_args(arguments)
    return imagetools.answer(lambda: build_and_push(given.registry, given.tag, given.context), "images")


def build_and_push(registry, tag, context):
    """Both images, then the values. Cannot: nothing was printed to standard output."""
    registry = checked(registry, tag)
    tool = imagetools.find_tool()
    references = {target: f"{registry}/rerail-{target}:{tag}" for target in imagetools.TARGETS}
    for target, reference in references.items():
        tool.build(context, target, reference)
    digests = {target: tool.push(reference) for target, reference in references.items()}
    sys.stdout.write(values(registry, tag, digests))


def checked(registry, tag):
    """The registry without a slash at its end. Cannot: it or the tag is not one, with an example."""
    if not registry:
        raise Cannot(
            "REGISTRY is not set: say where the images go, as in: "
            "make images REGISTRY=registry.example.com/team"
        )
    if "://" in registry:
        raise Cannot(f"REGISTRY={registry}: write it without ://, as in registry.example.com/team")
    registry = registry.rstrip("/")
    if not REGISTRY.fullmatch(registry):
        raise Cannot(
            f"REGISTRY={registry}: write a host and a path in lower case, as in registry.example.com/team"
        )
    if not TAG.fullmatch(tag):
        raise Cannot(f"TAG={tag}: write letters, digits, '.', '_' and '-' only, as in 0.1.0")
    return registry


def values(registry, tag, digests):
    """Values for helm; the trainer's image is for the manifests of jobs and so only a comment."""
    return (
        "# helm install rerail helm/rerail --namespace rerail-system --create-namespace --values THIS-FILE\n"
        "image:\n"
        "  repository: {registry}/rerail-operator\n"
        "  tag: {tag}\n"
        "  digest: {operator}\n"
        "# In a TrainingJob:\n"
        "#   image: {registry}/rerail-trainer@{trainer}\n"
    ).format(registry=registry, tag=f'"{tag}"', **digests)


if __name__ == "__main__":
    try:
        demo.require_python()
    except demo.CannotSetUp as problem:
        sys.exit(f"images: {problem}")
    sys.exit(main(sys.argv[1:]))
