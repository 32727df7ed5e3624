#!/usr/bin/env bash
# cluster.sh exec jobset.sh: the JobSet controller, by its own chart, for trainings on several nodes. It takes a few seconds to be ready.
set -euo pipefail
source "$(dirname "$0")/versions.sh"
# Applied by the client, as the controller fills the Secret that the chart makes empty: a second call would be a conflict on the server.
# Nobody is elected among one controller: on a busy machine it lost its lease, and restarted, again and again.
helm upgrade --install jobset "$CACHE/src/jobset-$JOBSET_VERSION/charts/jobset" --namespace jobset-system --create-namespace --server-side=false \
  --set image.repository=localhost/jobset,image.tag="v$JOBSET_VERSION",image.pullPolicy=Never \
  --set controller.resources.requests.cpu=200m,controller.leaderElection.enable=false > /dev/null
kubectl -n jobset-system rollout status deployment --timeout=60s > /dev/null
