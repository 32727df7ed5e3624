#!/usr/bin/env bash
# cluster.sh exec jobset.sh: the JobSet controller, by its own chart, for trainings on several nodes. It takes a few seconds to be ready.
set -euo pipefail
source "$(dirname "$0")/versions.sh"
helm upgrade --install jobset "$CACHE/src/jobset-$JOBSET_VERSION/charts/jobset" --namespace jobset-system --create-namespace \
  --set image.repository=localhost/jobset,image.tag="v$JOBSET_VERSION",image.pullPolicy=Never,controller.resources.requests.cpu=20m > /dev/null
kubectl -n jobset-system rollout status deployment --timeout=60s > /dev/null
