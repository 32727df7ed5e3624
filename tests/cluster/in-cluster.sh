#!/usr/bin/env bash
# in-cluster.sh COMMAND...: runs a command where the cluster's addresses are reachable: here with KUBECONFIG, else inside the cluster of up.sh.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
[ -n "${KUBECONFIG:-}" ] && exec "$@"
export PATH=$root/.venv/bin:$PATH
exec "$here/local/cluster.sh" exec "$@"
