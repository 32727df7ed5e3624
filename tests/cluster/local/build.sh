#!/usr/bin/env bash
# Builds every program of the cluster out of Go modules into the cache folder, and the cluster's own small images. Skips what is there.
# Cold: 8 minutes on two cores; Go's build cache then holds 6 GB.
set -euo pipefail
source "$(dirname "$0")/versions.sh"
export CGO_ENABLED=0
mkdir -p "$CACHE"/{bin,images,src,crds,rbac}
modules=$(go env GOMODCACHE)
download() { (cd / && go mod download "$1@$2"); }

kubernetes() {
  download k8s.io/kubernetes "v$KUBERNETES_VERSION"
  local module=$modules/k8s.io/kubernetes@v$KUBERNETES_VERSION source=$CACHE/src/kubeone flags="-s -w" package
  mkdir -p "$source"
  cp "$HERE/kubeone/main.go" "$source/"
  # The repository asks for its staging modules at v0.0.0; published, they have versions of their own. Everything else stays upstream's pin.
  sed -E "s/^module .*/module kubeone/; s#=> ./staging/src/(\S+)#=> \1 v0.${KUBERNETES_VERSION#1.}#
          0,/^require \(/s//require k8s.io\/kubernetes v$KUBERNETES_VERSION\n\nrequire (/" "$module/go.mod" > "$source/go.mod"
  install -m 644 "$module/go.sum" "$source/go.sum"
  for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    flags+=" -X $package.gitVersion=v$KUBERNETES_VERSION -X $package.gitMajor=1 -X $package.gitMinor=$(cut -d. -f2 <<< "$KUBERNETES_VERSION")"
    flags+=" -X $package.gitTreeState=clean -X $package.gitCommit=module -X $package.buildDate=2026-01-01T00:00:00Z"
  done
  (cd "$source" && go build -mod=mod -trimpath -ldflags "$flags" -o "$CACHE/bin/kubeone" .)
}

argo() {
  local package=github.com/argoproj/argo-workflows/v${ARGO_VERSION%%.*} source=$CACHE/src/argo-$ARGO_VERSION flags
  download "$package" "v$ARGO_VERSION"
  rm -rf "$source"
  cp -r "$modules/$package@v$ARGO_VERSION" "$source"
  chmod -R u+w "$source"
  # Upstream this is a symbolic link, which module archives leave out; go:embed wants at least one file of the user interface.
  cp -n "$source"/workflow/executor/osspecific/signal_{darwin,linux}.go
  mkdir -p "$source/ui/dist/app"
  echo '<html>no user interface in this build</html>' > "$source/ui/dist/app/index.html"
  flags="-s -w -X $package.version=v$ARGO_VERSION -X $package.gitTag=v$ARGO_VERSION -X $package.gitCommit=0000000"
  flags+=" -X $package.gitTreeState=clean -X $package.buildDate=2026-01-01T00:00:00Z"
  mkdir -p "$CACHE/bin/argo-$ARGO_VERSION"
  (cd "$source" && go build -trimpath -ldflags "$flags" -o "$CACHE/bin/argo-$ARGO_VERSION/" ./cmd/argoexec ./cmd/workflow-controller ./cmd/argo)
  mkdir -p "$CACHE/crds/$ARGO_VERSION" "$CACHE/rbac/$ARGO_VERSION"
  cp "$source"/manifests/base/crds/full/argoproj.io_*.yaml "$CACHE/crds/$ARGO_VERSION/"
  cp "$source"/manifests/namespace-install/workflow-controller-rbac/workflow-controller-role*.yaml "$CACHE/rbac/$ARGO_VERSION/"
  cp "$source/hack/nsswitch.conf" "$CACHE/rbac/$ARGO_VERSION/"
}

jobset() {
  download sigs.k8s.io/jobset "v$JOBSET_VERSION"
  local module=$modules/sigs.k8s.io/jobset@v$JOBSET_VERSION source=$CACHE/src/jobset-$JOBSET_VERSION
  rm -rf "$source"
  cp -r "$module" "$source"
  chmod -R u+w "$source"
  (cd "$source" && go build -trimpath -ldflags "-s -w" -o "$CACHE/bin/jobset-$JOBSET_VERSION" .)
}

[ -x "$CACHE/bin/kubeone" ] || kubernetes
ln -sf kubeone "$CACHE/bin/kubectl"
[ -x "$CACHE/bin/argo-$ARGO_VERSION/workflow-controller" ] || argo
[ -x "$CACHE/bin/jobset-$JOBSET_VERSION" ] || jobset
program() { [ -x "$CACHE/bin/$1" ] || GOBIN=$CACHE/bin go install -trimpath -ldflags "-s -w" "$2"; }
program coredns "github.com/coredns/coredns@v$COREDNS_VERSION"
program kube-router "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router@v$KUBE_ROUTER_VERSION"
program helm "helm.sh/helm/v${HELM_VERSION%%.*}/cmd/helm@v$HELM_VERSION"

image() { [ -s "$CACHE/images/$1.tar" ] || python3 "$HERE/make_image.py" "localhost/$2" "$CACHE/images/$1.tar" "${@:3}"; }
image pause pause:1 --user 65535:65535 --entrypoint '["/bin/busybox","sleep","inf"]' /bin/busybox=/bin/busybox
image "argoexec-$ARGO_VERSION" "argoexec:v$ARGO_VERSION" --entrypoint '["argoexec"]' "$CACHE/bin/argo-$ARGO_VERSION/argoexec=/bin/argoexec" \
  /etc/mime.types=/etc/mime.types "$CACHE/rbac/$ARGO_VERSION/nsswitch.conf=/etc/nsswitch.conf"
image "jobset-$JOBSET_VERSION" "jobset:v$JOBSET_VERSION" --user 65532:65532 --entrypoint '["/manager"]' "$CACHE/bin/jobset-$JOBSET_VERSION=/manager"
