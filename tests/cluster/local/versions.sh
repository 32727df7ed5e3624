# shellcheck shell=bash
# Versions of what the cluster is made of; the environment may name others.
# Kubernetes stays at 1.34: from 1.35 the kubelet refuses control groups of version 1 unless told otherwise.
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CACHE=${CLUSTER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/stagecoach-cluster}
DATA=${CLUSTER_DATA:-$CACHE/data}
KUBERNETES_VERSION=${KUBERNETES_VERSION:-1.34.4}
# The version of a cluster that is up holds for everything that talks to it.
ARGO_VERSION=${ARGO_VERSION:-$(cat "$DATA/argo-version" 2>/dev/null || echo 4.0.5)}
HELM_VERSION=${HELM_VERSION:-4.3.1}
COREDNS_VERSION=${COREDNS_VERSION:-1.14.7}
JOBSET_VERSION=${JOBSET_VERSION:-0.10.1}
KUBE_ROUTER_VERSION=${KUBE_ROUTER_VERSION:-2.1.0}
