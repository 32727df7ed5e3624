#!/usr/bin/env bash
# PID 1 of the cluster's own mount, PID and network namespaces. What programs write to fixed places (/run, /var/lib/kubelet) is private
# here, and everything ends with this process.
#   inner.sh CGROUP
set -euo pipefail
exec < /dev/null
source "$(dirname "$0")/versions.sh"
cgroup=$1
nodes=${NODES:-node1}
export PATH=$CACHE/bin:/usr/sbin:/usr/bin:/sbin:/bin KUBECONFIG=$DATA/pki/kubeconfig
pki=/run/k/pki

log() { echo "$(date +%T.%3N) $*" >> "$DATA/log/inner.log"; }
background() { local name=$1; shift; "$@" >> "$DATA/log/$name.log" 2>&1 & echo $! > "/run/k/$name.pid"; }

private_places() {
  mkdir -p "$DATA/log"
  rm -f "$DATA"/log/*
  mount --make-rshared /
  mkdir -p /var/lib/kubelet /var/log/containers
  for place in /run /var/log/containers /var/lib/kubelet; do mount -t tmpfs tmpfs "$place"; done
  mkdir -p /run/k/etcd /run/k/cni
  chmod 700 /run/k/etcd
  : > /run/k/resolv.conf
  cp "$HERE/conf/pods.conflist" /run/k/cni/10-pods.conflist
  "$HERE/certificates.sh" "$DATA/pki"
  cp -r "$DATA/pki" /run/k/
}

network() {
  ip link set lo up
  ip link add cni0 type bridge
  ip addr add 10.88.0.1/24 dev cni0    # the pods' gateway, and where tests reach servers that they start
  ip link set cni0 up
  ip addr add 10.96.0.1/32 dev cni0    # the Service "kubernetes": the API server itself answers there, so no kube-proxy is needed
  ip addr add 10.96.0.10/32 dev cni0   # CoreDNS answers here, for names of the cluster alone: any other is refused at once
}

control_plane() {
  background etcd kubeone etcd --data-dir /run/k/etcd --unsafe-no-fsync --log-level warn \
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 --initial-cluster default=http://127.0.0.1:2380
  background kube-apiserver kubeone kube-apiserver --etcd-servers http://127.0.0.1:2379 --bind-address 0.0.0.0 --secure-port 443 \
    --advertise-address 10.88.0.1 --service-cluster-ip-range 10.96.0.0/24 --authorization-mode RBAC --client-ca-file $pki/ca.crt \
    --tls-cert-file $pki/apiserver.crt --tls-private-key-file $pki/apiserver.key --service-account-issuer https://kubernetes.default.svc \
    --service-account-key-file $pki/sa.key --service-account-signing-key-file $pki/sa.key --kubelet-client-certificate $pki/admin.crt \
    --kubelet-client-key $pki/admin.key --kubelet-preferred-address-types InternalIP --allow-privileged=true --profiling=false \
    --enable-aggregator-routing=true    # webhooks are called at their pods, as nothing routes the addresses of Services
}

managers() {
  until [ "$(kubectl get --raw /readyz 2>/dev/null)" = ok ]; do sleep 0.1; done
  log apiserver ready
  background kube-controller-manager kubeone kube-controller-manager --kubeconfig "$KUBECONFIG" --leader-elect=false --bind-address 127.0.0.1 \
    --service-account-private-key-file $pki/sa.key --root-ca-file $pki/ca.crt
  background kube-scheduler kubeone kube-scheduler --kubeconfig "$KUBECONFIG" --leader-elect=false --bind-address 127.0.0.1
}

names() {
  printf 'cluster.local {\n  bind 10.96.0.10\n  errors\n  kubernetes {\n    kubeconfig %s\n  }\n}\n' "$KUBECONFIG" > /run/k/Corefile
  background coredns coredns -conf /run/k/Corefile
}

network_policies() {  # enforced for the pods of node1: one process in a network namespace, and it knows one node
  background kube-router kube-router --run-firewall=true --run-router=false --run-service-proxy=false --kubeconfig "$KUBECONFIG" \
    --hostname-override=node1 --service-cluster-ip-range 10.96.0.0/24 --iptables-sync-period 10s --health-port 0
}

control_group() {  # one for each node: two kubelets that share one would delete each other's pods' groups
  if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    mkdir -p "/sys/fs/cgroup/$cgroup/$1"
    for group in "" "/$cgroup" "/$cgroup/$1"; do
      for kind in cpu cpuset memory pids io hugetlb; do echo "+$kind" > "/sys/fs/cgroup$group/cgroup.subtree_control" || true; done
    done 2>/dev/null
  else
    for controller in /sys/fs/cgroup/*/; do mkdir -p "$controller/$cgroup/$1" 2>/dev/null || true; done
    # all pods together would otherwise get what one process of the machine gets
    echo 16384 > "/sys/fs/cgroup/cpu/$cgroup/cpu.shares" || true
  fi
}

container_runtime() {
  local node=$1 address=$2 file
  ip addr add "$address/32" dev cni0
  mkdir -p "/run/$node" "$DATA/$node"/{containerd,kubelet,podlogs}
  control_group "$node"
  for file in containerd.toml kubelet.yaml; do
    sed "s#@NODE@#$node#; s#@DATA@#$DATA/$node#; s#@ADDRESS@#$address#; s#@CGROUP@#$cgroup/$node#" "$HERE/conf/$file" > "/run/$node/$file"
  done
  background "containerd-$node" containerd --config "/run/$node/containerd.toml" --log-level warn
}

own_images() {  # an earlier start may have imported them: the runtime's data folder outlives the cluster
  local node=$1 archive mark stamp
  for archive in "$CACHE"/images/*.tar; do
    stamp=$(stat -c %s-%Y "$archive") mark=$DATA/$node/$(basename "$archive").done
    [ "$(cat "$mark" 2>/dev/null)" = "$stamp" ] && continue
    ctr -a "/run/$node/containerd.sock" -n k8s.io images import "$archive" >> "$DATA/log/images.log" 2>&1
    echo "$stamp" > "$mark"
  done
}

kubelet() {
  local node=$1 address=$2
  until ctr -a "/run/$node/containerd.sock" version > /dev/null 2>&1; do sleep 0.1; done
  own_images "$node"
  background "kubelet-$node" kubeone kubelet --config "/run/$node/kubelet.yaml" --root-dir "$DATA/$node/kubelet" --cert-dir "/run/$node/pki" \
    --kubeconfig "$KUBECONFIG" --hostname-override "$node" --node-ip "$address"
}

gpu_node() {  # four GPUs that do not exist, as an A100 node offers them: the scheduler counts them, the pod gets no device
  kubectl patch node gpu1 --subresource=status --type=merge -p '{"status":{"capacity":{"nvidia.com/gpu":"4"},"allocatable":{"nvidia.com/gpu":"4"}}}'
  kubectl label node gpu1 nvidia.com/gpu.product=NVIDIA-A100-SXM4-40GB nvidia.com/gpu.count=4 nvidia.com/gpu.memory=40960 nvidia.com/gpu.present=true
  kubectl taint node gpu1 nvidia.com/gpu=present:NoSchedule
}

private_places
network
log start
control_plane
number=10
for node in $nodes; do number=$((number + 1)); container_runtime "$node" 10.89.0.$number; done
managers
names
number=10
for node in $nodes; do number=$((number + 1)); kubelet "$node" 10.89.0.$number; done
for node in $nodes; do until kubectl get node "$node" > /dev/null 2>&1; do sleep 0.1; done; done
kubectl wait --for=condition=Ready node --all --timeout=60s > /dev/null
log nodes ready
network_policies
case " $nodes " in *" gpu1 "*) gpu_node > /dev/null ;; esac
until kubectl get serviceaccount default > /dev/null 2>&1; do sleep 0.1; done
log up
echo up > "$DATA/state"
while :; do sleep 3600; done
