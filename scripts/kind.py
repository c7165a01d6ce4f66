"""`make kind-up` and `make kind-down`: Rerail in a kind cluster, with pretended GPUs.

    python3 scripts/kind.py up [--gpus 8] | down

Needs docker, kind, kubectl and helm; the latter two are taken from the rig of tests/cluster where it has
built them. kind-config.yaml lays one directory of this machine into all nodes, for the checkpoints.
KIND_NODE_IMAGE names another node image than kind's own; Kubernetes 1.34 or newer is needed.
"""

import argparse
import json
import os
import shutil
import sys

import demo
import imagetools
from imagetools import Cannot, output_of, run, say

sys.path.insert(0, imagetools.ROOT)

NAME = "rerail"
OLDEST = (1, 34)
STATE = os.path.join(imagetools.ROOT, ".rerail")
SHARED = os.path.join(STATE, "shared")
KUBECONFIG = os.path.join(STATE, "kind.kubeconfig")
CRDS = os.path.join(imagetools.ROOT, "crds")
CONFIG = os.path.join(imagetools.ROOT, "kind-config.yaml")
WHERE = {
    "docker": "https://docs.docker.com/engine/install/",
    "kind": "https://kind.sigs.k8s.io/docs/user/quick-start/#installation",
    "kubectl": "https://kubernetes.io/docs/tasks/tools/",
    "helm": "https://helm.sh/docs/intro/install/",
}
NEXT = """\
export KUBECONFIG={kubeconfig}
kubectl apply -f examples/01-recover/job.yaml
kubectl get tj -w
kubectl describe tj recover
"""


def main(arguments):
    parser = argparse.ArgumentParser(prog="kind")
    parser.add_argument("what", choices=["up", "down"])
    parser.add_argument("--gpus", type=int, default=8, help="pretended GPUs per worker node")
    given = parser.parse_args(arguments)
    work = down if given.what == "down" else lambda: up(given.gpus)
    return imagetools.answer(work, "kind")


def up(gpus):
    """The cluster with Rerail in it; every step may be repeated. Cannot: the step, and what helps."""
    cluster = Kind(find("docker"), find("kind"), find("kubectl"), find("helm"))
    fresh = cluster.create()
    cluster.require_version()
    tool = imagetools.Tool("docker")
    from tests.cluster.rig.images import image_name

    names = {target: image_name(target) for target in imagetools.TARGETS}
    for target, name in names.items():
        tool.build(imagetools.ROOT, target, name)
    cluster.load(list(names.values()))
    cluster.pretend_gpus(gpus)
    from tests.cluster.rig.daemon import NAMESPACE, install

    say("installing Rerail ...")
    if not fresh:
        cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", CRDS)
    say(install(cluster).strip())
    if not fresh:
        # The new image has the old one's name, so nothing in the Deployment has changed.
        cluster.kubectl("rollout", "restart", "deployment/rerail", "-n", NAMESPACE)
        cluster.kubectl("rollout", "status", "deployment/rerail", "-n", NAMESPACE, "--timeout=180s")
    sys.stdout.write(NEXT.format(kubeconfig=KUBECONFIG))


def down():
    kind = find("kind")
    find("docker")
    run([kind, "delete", "cluster", "--name", NAME, "--kubeconfig", KUBECONFIG])
    say(f"the cluster is gone; checkpoints are kept in {SHARED}")


def find(name):
    """A program's path: on PATH, or built by the rig. Cannot: where to get it. docker has to answer, too."""
    path = shutil.which(name) or built_by_the_rig(name)
    if path is None:
        raise Cannot(f"{name} is not installed: {WHERE[name]}\n  without Docker: make cluster")
    if name == "docker":
        try:
            output_of([path, "version"])
        except Cannot as problem:
            told = str(problem).splitlines()[-1]
            raise Cannot(f"docker does not answer: {told}\n  without Docker: make cluster") from problem
    return path


def built_by_the_rig(name):
    from tests.cluster.rig.binaries import location
    from tests.cluster.rig.versions import TOOLS

    return str(location(name)) if name in TOOLS and location(name).exists() else None


class Kind:
    """One kind cluster, with the words in which the rig speaks to its own (`daemon.install` takes either)."""

    def __init__(self, docker, kind, kubectl, helm):
        self._docker, self._kind, self._kubectl, self._helm = docker, kind, kubectl, helm

    def create(self):
        """Make it; False where it is there already."""
        os.makedirs(SHARED, exist_ok=True)
        os.chmod(SHARED, 0o1777)  # the trainer's user is not root
        if NAME in output_of([self._kind, "get", "clusters"]).split():
            say(f"cluster {NAME} is there already")
            run([self._kind, "export", "kubeconfig", "--name", NAME, "--kubeconfig", KUBECONFIG])
            return False
        words = [self._kind, "create", "cluster", "--name", NAME, "--config", CONFIG]
        if os.environ.get("KIND_NODE_IMAGE"):
            words += ["--image", os.environ["KIND_NODE_IMAGE"]]
        # kind reads the directory of the mounts relative to where it runs.
        run([*words, "--kubeconfig", KUBECONFIG, "--wait", "120s"], cwd=imagetools.ROOT)
        return True

    def require_version(self):
        told = json.loads(self.kubectl("version", "-o", "json"))["serverVersion"]
        found = (int(told["major"]), int(told["minor"].rstrip("+")))
        if found < OLDEST:
            raise Cannot(
                f"this cluster is Kubernetes {found[0]}.{found[1]}, "
                f"Rerail needs {OLDEST[0]}.{OLDEST[1]} or newer: "
                "make kind-down, then a newer kind, or KIND_NODE_IMAGE=kindest/node:v1.36.1"
            )

    def load(self, names):
        say("loading images into the nodes ...")
        run([self._kind, "load", "docker-image", *names, "--name", NAME])

    def pretend_gpus(self, count):
        """Numbers in the status of each worker node; there is no device behind them."""
        from tests.cluster.rig.nodes import GPU

        amount = {GPU: str(count)}
        patch = json.dumps({"status": {"capacity": amount, "allocatable": amount}})
        workers = self.kubectl("get", "nodes", "-l", "!node-role.kubernetes.io/control-plane", "-o", "name")
        for node in workers.split():
            self.kubectl("patch", node, "--subresource=status", "--type=merge", "--patch", patch)

    def kubectl(self, *words):
        return output_of([self._kubectl, "--kubeconfig", KUBECONFIG, *words])

    def helm(self, *words):
        return output_of([self._helm, "--kubeconfig", KUBECONFIG, *words])


if __name__ == "__main__":
    try:
        demo.require_python()
    except demo.CannotSetUp as problem:
        sys.exit(f"kind: {problem}")
    sys.exit(main(sys.argv[1:]))
