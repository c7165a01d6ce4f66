"""`make bundle`: one archive with all that a site without internet needs, `dist/rerail-VERSION.tar`.

    python3 scripts/bundle.py [--out DIR] [--images DIR] [--context DIR]

Inside: both images, the chart as helm packs it, the CRD, the examples, `load.sh` and SHA256SUMS.
With --images the archives `operator.tar` and `trainer.tar` in that folder are taken instead of being built.
"""

import argparse
import gzip
import hashlib
import os
import shutil
import sys
import tarfile
import tempfile

import demo
import imagetools
from imagetools import Cannot, say

BLOCK = 1024 * 1024
CHART_FILES = "helm/rerail"


def main(arguments):
    parser = argparse.ArgumentParser(prog="bundle")
    parser.add_argument("--out", default=os.path.join(imagetools.ROOT, "dist"))
    parser.add_argument("--images", help="folder with operator.tar and trainer.tar, built elsewhere")
    parser.add_argument("--context", default=imagetools.ROOT, help="folder with the Dockerfile")
    given = parser.parse_args(arguments)
    return imagetools.answer(lambda: bundle(given.out, given.images, given.context), "bundle")


def bundle(out, images, context):
    """Make it, and print its path. Cannot: no half archive is left behind."""
    os.makedirs(out, exist_ok=True)
    name = f"rerail-{imagetools.version()}"
    with tempfile.TemporaryDirectory(prefix=".bundle-", dir=out) as scratch:
        top = os.path.join(scratch, name)
        os.makedirs(os.path.join(top, "images"))
        put_images(os.path.join(top, "images"), images, context)
        put_rest(top, name)
        write_sums(top)
        packed = os.path.join(scratch, "packed.tar")
        say("packing ...")
        pack(top, packed)
        target = os.path.join(out, name + ".tar")
        os.replace(packed, target)
    sys.stdout.write(f"{target}\n")


def put_images(folder, ready, context):
    tool = None if ready else imagetools.find_tool()
    for target in imagetools.TARGETS:
        path = os.path.join(folder, f"rerail-{target}.tar")
        if tool is None:
            source = os.path.join(ready, target + ".tar")
            if not os.path.isfile(source):
                raise Cannot(f"--images {ready}: {source} is not there")
            shutil.copyfile(source, path)
            continue
        reference = f"rerail-{target}:{imagetools.version()}"
        tool.build(context, target, reference)
        tool.save(reference, path)


def put_rest(top, name):
    root = imagetools.ROOT
    write_chart(os.path.join(root, CHART_FILES), os.path.join(top, name + ".tgz"))
    for folder in ("crds", "examples"):
        shutil.copytree(
            os.path.join(root, folder),
            os.path.join(top, folder),
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    shutil.copy(os.path.join(root, "scripts", "load.sh"), os.path.join(top, "load.sh"))
    shutil.copy(os.path.join(root, "LICENSE"), os.path.join(top, "LICENSE"))


def write_chart(source, path):
    """The chart as `helm package` makes it: a gzipped tar whose one folder has the chart's name."""
    with open(path, "wb") as file:
        with gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as zipped:
            with tarfile.open(fileobj=zipped, mode="w") as tar:
                for inside in files_of(source):
                    add(tar, os.path.join(source, inside), "rerail/" + inside)


def write_sums(top):
    """SHA256SUMS over every file, as `sha256sum --check` reads it."""
    lines = [f"{digest(os.path.join(top, inside))}  {inside}\n" for inside in files_of(top)]
    with open(os.path.join(top, "SHA256SUMS"), "w") as file:
        file.writelines(lines)


def pack(top, path):
    with tarfile.open(path, "w") as tar:
        for inside in files_of(top):
            add(tar, os.path.join(top, inside), f"{os.path.basename(top)}/{inside}")


def files_of(folder):
    """Paths below the folder, sorted: the same files give the same archive."""
    found = []
    for place, folders, names in os.walk(folder):
        folders.sort()
        found += [os.path.relpath(os.path.join(place, name), folder).replace(os.sep, "/") for name in names]
    return sorted(found)


def add(tar, source, name):
    info = tarfile.TarInfo(name)
    info.size = os.path.getsize(source)
    info.mode = 0o755 if name.endswith(".sh") else 0o644
    with open(source, "rb") as file:
        tar.addfile(info, file)


def digest(path):
    total = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(BLOCK), b""):
            total.update(block)
    return total.hexdigest()


if __name__ == "__main__":
    try:
        demo.require_python()
    except demo.CannotSetUp as problem:
        sys.exit(f"bundle: {problem}")
    sys.exit(main(sys.argv[1:]))
