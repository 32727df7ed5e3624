#!/usr/bin/env bash
# install_chart.sh NAMESPACE LOCK: the store's Secret and the chart with the locked images, by the Helm on PATH into the cluster of KUBECONFIG
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
namespace=$1 lock=$2
values=$(mktemp)
trap 'rm -f "$values"' EXIT
{ echo "images:"; python -c 'import json, sys; print("\n".join(f"  {k}: {v}" for k, v in json.load(open(sys.argv[1])).items()))' "$lock"; } > "$values"
kubectl -n "$namespace" create secret generic stagecoach-store --from-literal=AWS_ACCESS_KEY_ID=testkey --from-literal=AWS_SECRET_ACCESS_KEY=testsecret \
  --dry-run=client -o yaml | kubectl apply -f - > /dev/null
helm upgrade --install stagecoach "$root/charts/stagecoach" --namespace "$namespace" --values "$here/values.yaml" --values "$values" "${@:3}" > /dev/null
