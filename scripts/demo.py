"""From a fresh machine to a training job that survives a killed rank: checks, sets up `.venv`, runs the demo.

`python3 scripts/demo.py [--setup-only] [further options of rerail run]`. Standard library only, and readable
by old Pythons far enough to say which one is needed. Environment:

TORCH_INDEX           package index for torch (a CPU build is 25 times smaller than PyPI's Linux build)
RERAIL_TORCH_BACKEND  for uv, if uv is installed: cpu, auto, cu130, ...
RERAIL_VENV           the folder of the environment; default .venv in the checkout
"""

import glob
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MIN_PYTHON = (3, 11)
MIN_TORCH = (2, 11)
DISK_GB_WITH_TORCH = 8
DISK_GB_WITHOUT = 1
NEWER_PYTHONS = ["python3.14", "python3.13", "python3.12", "python3.11"]
DEMO = ["examples/01-recover/job.yaml", "--inject", "kill:rank=3,step=40"]
TORCH_PROBE = (
    "import os, sys, torch; v = torch.__version__.split('+')[0].split('.'); "
    "print(os.path.dirname(os.path.dirname(torch.__file__))) "
    "if (int(v[0]), int(v[1])) >= {} else sys.exit(1)"
)


class CannotSetUp(Exception):
    """This machine lacks something; the text names it and the command that helps."""


def say(text):
    sys.stdout.write(f"demo: {text}\n")
    sys.stdout.flush()


def main(arguments):
    setup_only = "--setup-only" in arguments
    further = [word for word in arguments if word != "--setup-only"]
    try:
        require_python()
        python = set_up()
    except CannotSetUp as problem:
        sys.stderr.write(f"demo: {problem}\n")
        return 1
    except subprocess.CalledProcessError as failure:
        sys.stderr.write("demo: this command failed: {}\n".format(" ".join(map(str, failure.cmd))))
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("demo: interrupted; the next run goes on from here\n")
        return 130
    if setup_only:
        say("ready; run: make demo")
        return 0
    return run_demo(python, further)


# -- checks


def require_python():
    """Go on with a Python of this machine that is new enough, or say how to get one."""
    if sys.version_info >= MIN_PYTHON:
        return
    for name in NEWER_PYTHONS:
        found = shutil.which(name)
        if found:
            os.execv(found, [found, *sys.argv])
    wanted = ".".join(map(str, MIN_PYTHON))
    raise CannotSetUp(
        f"Python {wanted} or newer is needed, this is {sys.version.split()[0]}. "
        "Debian, Ubuntu: sudo apt install python3.12 python3.12-venv; "
        "Fedora: sudo dnf install python3.12; macOS: brew install python@3.12"
    )


def require_venv():
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        version = "{}.{}".format(*sys.version_info[:2])
        raise CannotSetUp(
            "this Python cannot make environments (module venv or ensurepip is missing). "
            f"Debian, Ubuntu: sudo apt install python{version}-venv"
        ) from None


def require_disk(gigabytes):
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < gigabytes:
        raise CannotSetUp(
            f"{gigabytes} GB of disk are needed below {ROOT}, {free:.1f} GB are free. "
            f"See what takes it: df -h {ROOT}; "
            "a CPU build of torch needs far less: TORCH_INDEX=<its package index> make demo"
        )


# -- set-up


def set_up():
    """The environment's interpreter; made or brought up to date only where its stamp says so."""
    folder = os.environ.get("RERAIL_VENV") or os.path.join(ROOT, ".venv")
    python = os.path.join(folder, "bin", "python")
    stamp = os.path.join(folder, "rerail-demo.stamp")
    wanted = digest()
    if os.path.exists(python) and read(stamp) == wanted:
        return python
    uv = shutil.which("uv")
    if not uv:
        require_venv()
    own_torch = torch_home(python) if os.path.exists(python) else torch_home(sys.executable)
    require_disk(DISK_GB_WITHOUT if own_torch else DISK_GB_WITH_TORCH)
    if not os.path.exists(python):
        make_environment(folder, own_torch)
    if not own_torch:
        install_torch(python, uv)
    say("installing rerail and what `rerail run` needs (about 30 MB)")
    install(python, uv, ["--quiet", "-e", ROOT + "[local]"])
    if not torch_home(python):
        raise CannotSetUp(f"torch does not load in {folder}; remove that folder and try again")
    with open(stamp, "w") as file:
        file.write(wanted)
    return python


def make_environment(folder, own_torch):
    say(f"making {os.path.relpath(folder, ROOT)}")
    command = [sys.executable, "-m", "venv", folder]
    in_venv = sys.prefix != sys.base_prefix
    if own_torch and not in_venv:
        command.insert(3, "--system-site-packages")
    if shutil.which("uv"):
        command = ["uv", "venv", "--quiet", "--python", sys.executable, folder]
        command += ["--system-site-packages"] if own_torch and not in_venv else []
    subprocess.run(command, check=True)
    if own_torch and in_venv:
        # An environment made from an environment sees the base's packages only: name torch's folder.
        site = glob.glob(os.path.join(folder, "lib", "python3*", "site-packages"))[0]
        with open(os.path.join(site, "rerail-own-torch.pth"), "w") as file:
            file.write(own_torch + "\n")


def install_torch(python, uv):
    index = os.environ.get("TORCH_INDEX")
    backend = os.environ.get("RERAIL_TORCH_BACKEND")
    size = "about 5.3 GB with CUDA" if sys.platform == "linux" and not index and not backend else "up to 1 GB"
    say(f"installing torch ({size} on disk; once)")
    if size.startswith("about"):
        say("smaller: TORCH_INDEX=<package index with CPU builds>, or with uv RERAIL_TORCH_BACKEND=cpu")
    options = ["--index-url", index] if index else []
    if uv and backend:
        options += ["--torch-backend", backend]
    install(python, uv, [*options, "torch>=" + ".".join(map(str, MIN_TORCH))])
    install(python, uv, ["numpy>=1.26"])


def install(python, uv, words):
    if uv:
        command = [uv, "pip", "install", "--python", python]
    else:
        command = [python, "-m", "pip", "install", "--disable-pip-version-check"]
        command += [] if sys.stdout.isatty() else ["--progress-bar", "off"]
    subprocess.run(command + words, check=True, cwd=ROOT)


def torch_home(python):
    """The folder that holds an interpreter's own torch, if it has one that is new enough; else ""."""
    found = subprocess.run(
        [python, "-c", TORCH_PROBE.format(MIN_TORCH)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=tempfile.gettempdir(),
    )
    return found.stdout.decode().strip() if found.returncode == 0 else ""


def digest():
    """What the environment was made from: the interpreter and every file that names a dependency."""
    names = [os.path.join(ROOT, "pyproject.toml")]
    names += sorted(glob.glob(os.path.join(ROOT, "requirements*", "*.txt")))
    total = hashlib.sha256(sys.version.encode())
    for name in names:
        with open(name, "rb") as file:
            total.update(hashlib.sha256(file.read()).digest())
    return total.hexdigest()


def read(path):
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""


# -- the demo


def run_demo(python, further):
    """Run it, then look at its report: 0 only if the job completed and the loss fell."""
    with tempfile.TemporaryDirectory(prefix="rerail-demo-") as folder:
        report = os.path.join(folder, "report.json")
        command = [python, "-m", "rerail_operator.shell.cli", "run", *DEMO, "--report", report, *further]
        code = run_to_the_end(command)
        return code if code != 0 else verdict(report)


def run_to_the_end(command):
    """The command's exit code; a Ctrl-C is the command's to handle, it saves and stops by itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    child = subprocess.Popen(command, cwd=ROOT, preexec_fn=listen_to_ctrl_c)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    return child.wait()


def listen_to_ctrl_c():
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def verdict(path):
    with open(path) as file:
        report = json.load(file)
    first, last = report["firstLoss"], report["lastLoss"]
    if report["phase"] == "Complete" and first is not None and last is not None and last < first:
        say(f"the job completed, and the loss fell from {first:.3f} to {last:.3f}")
        return 0
    sys.stderr.write("demo: phase {}, loss {} -> {}\n".format(report["phase"], first, last))
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
