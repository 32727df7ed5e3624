#!/usr/bin/env bash
# load_images.sh LOCK: imports the images of a lock into the nodes that run them: train, several gigabytes, into the GPU node only. An image
# that a node has is not loaded again; the one that it replaces is removed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
cluster=$here/local/cluster.sh
python=$root/.venv/bin/python

"$python" -c 'import json, sys; print("\n".join(f"{k} {v}" for k, v in json.load(open(sys.argv[1])).items()))' "$1" | while read -r image reference; do
  node=node1
  [ "$image" = train ] && node=gpu1
  containerd() { "$cluster" exec ctr -a "/run/$node/containerd.sock" -n k8s.io images "$@" < /dev/null; }
  present=$(containerd list -q)
  grep -qx "$reference" <<< "$present" && continue
  archive=$root/build/images/$image.tar
  [ -s "$archive" ] || { echo "$archive is missing: make images IMAGES=$image" >&2; exit 1; }
  needed_kib=$(($(stat -c %s "$archive") * 5 / 2 / 1024))
  free_kib=$(df -Pk "${CLUSTER_DATA:-${CLUSTER_CACHE:-$HOME}}" | awk 'NR == 2 { print $4 }')
  [ "$free_kib" -gt "$needed_kib" ] || { echo "$image needs $((needed_kib / 1048576)) GiB of disk, $((free_kib / 1048576)) GiB are free" >&2; exit 1; }
  start=$(date +%s)
  "$cluster" load "$node" < "$archive"
  old=$(grep "^localhost/stagecoach-$image:" <<< "$present" || true)
  # shellcheck disable=SC2086  # one name a line
  [ -z "$old" ] || containerd rm $old > /dev/null
  echo "  $reference on $node, $(($(date +%s) - start)) s"
done
