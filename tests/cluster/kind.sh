#!/usr/bin/env bash
# kind.sh up|down: the same cluster with kind and Docker, for a laptop and for GitHub Actions. UNTRIED where it was written: no registry was
# reachable there. It differs from the local one in where images come from and in the store, which runs on the host's Docker bridge.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
source "$here/local/versions.sh"
namespace=${STAGECOACH_NAMESPACE:-stagecoach}
lock=$root/build/images.lock.json
name=stagecoach
export PATH=$root/.venv/bin:$PATH

up() {
  kind get clusters | grep -qx "$name" || kind create cluster --name "$name" --wait 120s --config - <<YAML
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
nodes: [{role: control-plane}, {role: worker}, {role: worker}]
YAML
  export KUBECONFIG=${KUBECONFIG:-$HOME/.kube/config}
  kubectl config use-context "kind-$name"
  local gpu=$name-worker2 image reference
  kubectl patch node "$gpu" --subresource=status --type=merge -p '{"status":{"capacity":{"nvidia.com/gpu":"4"},"allocatable":{"nvidia.com/gpu":"4"}}}'
  kubectl label node "$gpu" --overwrite nvidia.com/gpu.product=NVIDIA-A100-SXM4-40GB nvidia.com/gpu.count=4
  kubectl taint node "$gpu" --overwrite nvidia.com/gpu=present:NoSchedule
  kubectl create namespace "$namespace" --dry-run=client -o yaml | kubectl apply -f -
  kubectl label namespace "$namespace" --overwrite pod-security.kubernetes.io/enforce=restricted
  kubectl -n "$namespace" apply -f "$here/local/conf/controller.yaml"
  kubectl -n "$namespace" apply --server-side -f "https://github.com/argoproj/argo-workflows/releases/download/v$ARGO_VERSION/namespace-install.yaml"
  kubectl -n "$namespace" set env deployment/workflow-controller ARGO_PROGRESS_PATCH_TICK_DURATION=5s DEFAULT_REQUEUE_TIME=1s
  kubectl -n "$namespace" rollout status deployment/workflow-controller --timeout=180s
  docker rm -f "$name-store" > /dev/null 2>&1 || true
  docker run -d --name "$name-store" --network kind chrislusf/seaweedfs server -s3 -s3.port=8333 > /dev/null
  python -c 'import json, sys; print("\n".join(f"{k} {v}" for k, v in json.load(open(sys.argv[1])).items()))' "$lock" | while read -r image reference; do
    kind load docker-image --name "$name" "$reference" --nodes "$([ "$image" = train ] && echo "$gpu" || echo "$name-worker")"
  done
  "$here/install_chart.sh" "$namespace" "$lock" --set "store.endpointUrl=http://$name-store:8333"
  echo "up: KUBECONFIG=$KUBECONFIG make test-cluster"
}

down() {
  kind delete cluster --name "$name"
  docker rm -f "$name-store" > /dev/null 2>&1 || true
}

"$1"
