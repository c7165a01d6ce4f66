#!/bin/sh
# Part of an air-gapped bundle: checks it, pushes both images to a registry of the site, prints the chart's values.
#
#   ./load.sh REGISTRY [TAG]      as in: ./load.sh registry.example.com/team > values-images.yaml
#
# Needs sha256sum and one of docker, podman, skopeo or buildah. Progress goes to standard error.
set -eu
cd "$(dirname "$0")"
say() { echo "load: $*" >&2; }
fail() { say "$*"; exit 1; }

[ $# -ge 1 ] && [ -n "$1" ] || fail "say where the images go, as in: ./load.sh registry.example.com/team"
case "$1" in *://*) fail "$1: write it without ://, as in registry.example.com/team" ;; esac
registry="${1%/}"
chart="$(ls rerail-*.tgz)"
release="${chart#rerail-}"
release="${release%.tgz}"
tag="${2:-$release}"

say "checking SHA256SUMS ..."
sha256sum --quiet --check SHA256SUMS >&2 || fail "files are damaged: copy the bundle again"

if docker version >/dev/null 2>&1; then tool=docker
elif podman info >/dev/null 2>&1; then tool=podman
elif skopeo --version >/dev/null 2>&1; then tool=skopeo
elif buildah info >/dev/null 2>&1; then tool=buildah
else fail "none of docker, podman, skopeo, buildah works here: install one of them"
fi

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

# push NAME: leaves the digest under which the registry has it in $work/NAME
push() {
  file="images/$1.tar" reference="$registry/$1:$tag"
  say "pushing $reference with $tool ..."
  case "$tool" in
    skopeo) skopeo copy --digestfile "$work/$1" "docker-archive:$file" "docker://$reference" >&2 ;;
    buildah)
      image="$(buildah pull --quiet "docker-archive:$file")"
      buildah push --digestfile "$work/$1" "$image" "docker://$reference" >&2 ;;
    *)
      loaded="$($tool load --input "$file" | sed -n 's/^Loaded image[^:]*: *//p' | head -n 1)"
      [ -n "$loaded" ] || fail "$tool loaded $file and named no image"
      $tool tag "$loaded" "$reference"
      if [ "$tool" = podman ]; then podman push --digestfile "$work/$1" "$reference" >&2
      else
        docker push "$reference" >&2
        docker inspect --format '{{join .RepoDigests "\n"}}' "$reference" \
          | sed -n "s|^$registry/$1@||p" | head -n 1 > "$work/$1"
      fi ;;
  esac
  grep -q '^sha256:' "$work/$1" || fail "$tool pushed $reference and told no digest"
}

push rerail-operator
push rerail-trainer
cat <<VALUES
# helm install rerail $chart --namespace rerail-system --create-namespace --values THIS-FILE
image:
  repository: $registry/rerail-operator
  tag: "$tag"
  digest: $(cat "$work/rerail-operator")
# In a TrainingJob:
#   image: $registry/rerail-trainer@$(cat "$work/rerail-trainer")
VALUES
