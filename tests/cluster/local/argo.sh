#!/usr/bin/env bash
# cluster.sh exec argo.sh NAMESPACE: Argo's CRDs, the namespace under PodSecurity "restricted", and the workflow controller as a process
# with the rights of its own service account. A second call restarts the controller.
set -euo pipefail
source "$(dirname "$0")/versions.sh"
namespace=$1
config=/run/k/controller.kubeconfig
echo "$ARGO_VERSION" > "$DATA/argo-version"

kubectl get crd workflows.argoproj.io > /dev/null 2>&1 || kubectl create -f "$CACHE/crds/$ARGO_VERSION" > /dev/null
kubectl wait --for=condition=Established crd --all --timeout=60s > /dev/null
kubectl create namespace "$namespace" --dry-run=client -o yaml | kubectl apply -f - > /dev/null
kubectl label namespace "$namespace" --overwrite pod-security.kubernetes.io/enforce=restricted > /dev/null
kubectl -n "$namespace" apply -f "$HERE/conf/controller.yaml" -f "$CACHE/rbac/$ARGO_VERSION/workflow-controller-role.yaml" \
  -f "$CACHE/rbac/$ARGO_VERSION/workflow-controller-rolebinding.yaml" > /dev/null

cp "$KUBECONFIG" $config
kubectl --kubeconfig $config config set-credentials argo --token="$(kubectl -n "$namespace" create token argo --duration=24h)" > /dev/null
kubectl --kubeconfig $config config set-context stagecoach --user=argo --namespace="$namespace" > /dev/null
# The controller ignores SIGTERM.
[ -s /run/k/controller.pid ] && kill -9 "$(cat /run/k/controller.pid)" 2>/dev/null || true
# Steps are ten seconds apart by default; progress is read as often as the executor may patch it.
env LEADER_ELECTION_DISABLE=true DEFAULT_REQUEUE_TIME=1s ARGO_PROGRESS_PATCH_TICK_DURATION=5s ARGO_PROGRESS_FILE_TICK_DURATION=1s \
  setsid workflow-controller --kubeconfig $config --namespace "$namespace" --namespaced --managed-namespace "$namespace" \
  --executor-image "localhost/argoexec:v$ARGO_VERSION" --executor-image-pull-policy IfNotPresent \
  >> "$DATA/log/workflow-controller.log" 2>&1 < /dev/null &
echo $! > /run/k/controller.pid
for _ in $(seq 100); do
  curl -sf -m 5 http://127.0.0.1:6060/healthz > /dev/null && exit 0
  sleep 0.1
done
echo "the workflow controller did not become healthy: see $DATA/log/workflow-controller.log" >&2
exit 1
