#!/usr/bin/env bash
# A cluster with Argo, an S3 store, the images of build/images.lock.json and the chart, ready for `argo submit`. Safe to run again: it goes on
# where it was. Without root it takes kind (tests/cluster/kind.sh); with root, the one of tests/cluster/local.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
namespace=${STAGECOACH_NAMESPACE:-stagecoach}
lock=$root/build/images.lock.json
export PATH=$root/.venv/bin:$PATH

[ -s "$lock" ] || { echo "no images: make images" >&2; exit 1; }
if [ "${CLUSTER:-}" = kind ] || { [ "$(id -u)" != 0 ] && command -v kind > /dev/null; }; then exec "$here/kind.sh" up; fi
[ "$(id -u)" = 0 ] || { echo "a cluster of its own needs root, or kind and Docker; or set KUBECONFIG and run make test-cluster" >&2; exit 1; }

cluster=$here/local/cluster.sh
step() { printf '%s  %s\n' "$(date +%T)" "$*"; }
# What fails half way is taken down again, unless it was up before.
was_up=$("$cluster" exec true 2>/dev/null && echo yes || echo no)
trap 'code=$?; if [ $code != 0 ] && [ $was_up = no ]; then "$cluster" stop; fi; exit $code' EXIT

step programs
"$here/local/build.sh"
step cluster
NODES="node1 gpu1" "$cluster" start
step "argo, jobset and store"
"$cluster" exec "$here/local/argo.sh" "$namespace"
"$cluster" exec "$here/local/jobset.sh"
"$cluster" exec "$here/local/seaweed.sh" start
"$cluster" exec python "$here/setup_store.py"
step images
"$here/load_images.sh" "$lock"
step chart
"$cluster" exec "$here/install_chart.sh" "$namespace" "$lock"
step "up: tests/cluster/local/cluster.sh exec argo -n $namespace submit --from workflowtemplate/stagecoach-tiny-cpu --watch"
