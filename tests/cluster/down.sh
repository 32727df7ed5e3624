#!/usr/bin/env bash
# down.sh [purge]: stops the cluster that up.sh started; `purge` removes its images and data too, the programs in the cache stay.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
if [ "${CLUSTER:-}" = kind ] || { [ "$(id -u)" != 0 ] && command -v kind > /dev/null; }; then exec "$here/kind.sh" down; fi
exec "$here/local/cluster.sh" stop "${1:-}"
