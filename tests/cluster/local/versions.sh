# shellcheck shell=bash
# Versions of what the cluster is made of; the environment may name others.
# Kubernetes stays at 1.34: from 1.35 the kubelet refuses control groups of version 1 unless told otherwise.
KUBERNETES_VERSION=${KUBERNETES_VERSION:-1.34.4}
ARGO_VERSION=${ARGO_VERSION:-4.0.5}
HELM_VERSION=${HELM_VERSION:-4.3.1}
COREDNS_VERSION=${COREDNS_VERSION:-1.14.7}
JOBSET_VERSION=${JOBSET_VERSION:-0.10.1}
KUBE_ROUTER_VERSION=${KUBE_ROUTER_VERSION:-2.1.0}
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CACHE=${CLUSTER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/stagecoach-cluster}
DATA=${CLUSTER_DATA:-$CACHE/data}
