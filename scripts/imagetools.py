"""The three programs that can build and push an image, behind one set of words: docker, podman, buildah.

Standard library only. A program counts only if it answers: a docker client without its daemon does not.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TARGETS = ("operator", "trainer")
ASK = {"docker": ["version"], "podman": ["info"], "buildah": ["info"]}
HELP = "install one of docker, podman or buildah (Debian, Ubuntu: sudo apt install buildah)"
PASSED_ON = ("BASE_IMAGE", "COMPILER", "TORCH_INDEX", "PIP_INDEX_URL", "PIP_TRUSTED_HOST", "PIP_CERT")
"""Build arguments of the Dockerfile that are taken from the environment where they are set there."""
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Cannot(Exception):
    """What was asked cannot be done here; the text says why and what helps."""


def say(text):
    """Progress, for people; results go to standard output."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def version():
    """The release of this checkout, which is the default tag: the chart's appVersion."""
    with open(os.path.join(ROOT, "helm", "rerail", "Chart.yaml")) as file:
        return re.search(r"^appVersion: *(\S+)$", file.read(), re.M).group(1).strip("\"'")


def run(words, **options):
    """Run to its end; its output goes where ours goes. Cannot: it failed, and has said why itself."""
    try:
        done = subprocess.run(words, check=False, **options)
    except OSError as error:
        raise Cannot(f"{words[0]}: {error.strerror}") from error
    if done.returncode != 0:
        told = (done.stderr or b"").decode(errors="replace").strip()
        raise Cannot(
            "this command ended with {}: {}{}".format(
                done.returncode, " ".join(words), "\n" + told if told else ""
            )
        )
    return done


def output_of(words):
    """What a command prints. Cannot: it failed; the text has its words."""
    return run(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE).stdout.decode().strip()


def find_tool():
    """The first of the three that is there and answers. Cannot: none is, with the reason for each."""
    why = []
    for name, question in ASK.items():
        if shutil.which(name) is None:
            why.append(f"{name}: not installed")
            continue
        try:
            output_of([name, *question])
        except Cannot as problem:
            why.append(f"{name} is installed and does not answer: {str(problem).splitlines()[-1]}")
            continue
        return Tool(name)
    raise Cannot("no program that builds images works here; {}\n  {}".format(HELP, "\n  ".join(why)))


class Tool:
    """One of the three, by name. Every method raises Cannot when the program fails."""

    def __init__(self, name):
        self.name = name

    def build(self, context, target, reference):
        """Build this target of CONTEXT/Dockerfile under this reference."""
        say(f"building {reference} with {self.name} ...")
        words = [self.name, "bud", "--layers"] if self.name == "buildah" else [self.name, "build"]
        for name in PASSED_ON:
            if os.environ.get(name):
                words += ["--build-arg", f"{name}={os.environ[name]}"]
        if os.environ.get("PLATFORM"):
            words += ["--platform", os.environ["PLATFORM"]]
        words += ["--target", target, "--tag", reference]
        # What a builder prints is progress, not our result.
        run([*words, "--file", os.path.join(context, "Dockerfile"), context], stdout=sys.stderr.fileno())

    def push(self, reference):
        """Push it; the digest under which the registry has it."""
        say(f"pushing {reference} ...")
        if self.name == "docker":
            run(["docker", "push", reference], stdout=sys.stderr.fileno())
            told = output_of(["docker", "inspect", "--format", '{{join .RepoDigests "\\n"}}', reference])
            repository = reference.rpartition(":")[0]
            # An image that was pushed elsewhere before has several.
            told = "\n".join(line for line in told.splitlines() if line.startswith(repository + "@"))
        else:
            with tempfile.TemporaryDirectory() as folder:
                file = os.path.join(folder, "digest")
                run([self.name, "push", "--digestfile", file, reference], stdout=sys.stderr.fileno())
                with open(file) as written:
                    told = written.read()
        found = DIGEST.search(told)
        if found is None:
            raise Cannot(f"{self.name} pushed {reference} and told no digest")
        return found.group(0)

    def save(self, reference, path):
        """Write it into a file that docker, podman, buildah, skopeo and containerd can load."""
        say(f"writing {os.path.basename(path)} ...")
        if self.name == "buildah":
            run(["buildah", "push", "--quiet", reference, f"docker-archive:{path}:{reference}"])
        elif self.name == "podman":
            run(["podman", "save", "--quiet", "--format", "docker-archive", "--output", path, reference])
        else:
            run(["docker", "save", "--output", path, reference])


def answer(work, name):
    """Run `work`; its exit code, with a sentence instead of a traceback where it cannot be done."""
    try:
        work()
    except Cannot as problem:
        sys.stderr.write(f"{name}: {problem}\n")
        return 1
    except OSError as problem:
        where = f"{problem.filename}: " if problem.filename else ""
        sys.stderr.write(f"{name}: {where}{problem.strerror or problem}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"{name}: interrupted\n")
        return 130
    return 0
