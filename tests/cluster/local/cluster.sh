#!/usr/bin/env bash
# A real Kubernetes in namespaces of its own: nothing of the machine is touched, and killing one process ends all of it.
#   cluster.sh start               NODES="node1 gpu1" adds a tainted node with four GPUs that do not exist
#   cluster.sh exec COMMAND...     runs a command inside, same folder, with kubectl, argo, helm and KUBECONFIG
#   cluster.sh load NODE           imports the image archive on standard input
#   cluster.sh stop [purge]        purge also removes the data folder with the images
# The cache folder is CLUSTER_CACHE (programs, made by build.sh), the data folder CLUSTER_DATA.
set -euo pipefail
source "$(dirname "$0")/versions.sh"

main_pid() { local pid; pid=$(cat "$DATA/namespaces.pid" 2>/dev/null) && grep -qa inner.sh "/proc/$pid/cmdline" 2>/dev/null && echo "$pid"; }

start() {
  main_pid > /dev/null && { echo "already up"; return; }
  mkdir -p "$DATA"
  rm -f "$DATA/state" "$DATA/namespaces.pid"
  local cgroup=stagecoach-$$ outer child=""
  echo "$cgroup" > "$DATA/cgroup"
  setsid unshare --mount --pid --net --fork --kill-child --mount-proc --propagation private bash "$HERE/inner.sh" "$cgroup" \
    > "$DATA/inner.out" 2>&1 < /dev/null &
  outer=$!
  for _ in $(seq 900); do
    child=$(cat "/proc/$outer/task/$outer/children" 2>/dev/null) || true
    [ -n "$child" ] && echo "${child// /}" > "$DATA/namespaces.pid"
    [ -s "$DATA/state" ] && { echo "up"; return; }
    [ -d "/proc/$outer" ] || break
    sleep 0.1
  done
  echo "the cluster did not start: see $DATA/inner.out and $DATA/log" >&2
  tail -n 5 "$DATA/inner.out" >&2
  stop
  return 1
}

execute() {
  local pid
  pid=$(main_pid) || { echo "the cluster is not up: make cluster-up" >&2; exit 1; }
  exec nsenter -t "$pid" -m -n -p -- env -C "$PWD" PATH="$CACHE/bin:$CACHE/bin/argo-$ARGO_VERSION:$PATH" KUBECONFIG="$DATA/pki/kubeconfig" \
    CLUSTER_CACHE="$CACHE" CLUSTER_DATA="$DATA" ARGO_VERSION="$ARGO_VERSION" "$@"
}

load() { "$0" exec ctr -a "/run/$1/containerd.sock" -n k8s.io images import - > /dev/null; }

stop() {
  local pid cgroup folder
  if pid=$(main_pid); then
    kill -9 "$pid"
    while [ -d "/proc/$pid" ]; do sleep 0.05; done
  fi
  cgroup=$(cat "$DATA/cgroup" 2>/dev/null) || return 0
  for folder in "/sys/fs/cgroup/$cgroup" /sys/fs/cgroup/*/"$cgroup"; do
    [ -d "$folder" ] && find "$folder" -depth -type d -exec rmdir {} \; 2>/dev/null || true
  done
  rm -rf "$DATA"/*/kubelet "$DATA"/*/podlogs "$DATA/namespaces.pid" "$DATA/state" "$DATA/argo-version"
  if [ "${1:-}" = purge ]; then rm -rf "$DATA"; fi
}

case ${1:-} in
  start) start ;;
  exec) shift; execute "$@" ;;
  load) load "$2" ;;
  stop) stop "${2:-}" ;;
  *) sed -n '2,7s/^# \?//p' "$0"; exit 2 ;;
esac
