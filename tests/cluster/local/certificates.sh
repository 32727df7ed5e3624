#!/usr/bin/env bash
# certificates.sh DIR: a certificate authority, the API server's certificate, one administrator, the key of service accounts, a kubeconfig
set -euo pipefail
mkdir -p "$1"
cd "$1"
[ -s kubeconfig ] && exit 0
new_key=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes)
openssl req -x509 "${new_key[@]}" -days 365 -subj /CN=test-ca -keyout ca.key -out ca.crt 2>/dev/null
issue() {
  openssl req "${new_key[@]}" -subj "$2" -keyout "$1.key" -out "$1.csr" 2>/dev/null
  openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 365 -extfile <(printf '%b\n' "$3") -out "$1.crt" 2>/dev/null
}
issue apiserver /CN=kube-apiserver \
  'extendedKeyUsage=serverAuth\nsubjectAltName=IP:10.96.0.1,IP:10.88.0.1,IP:127.0.0.1,DNS:localhost,DNS:kubernetes.default.svc'
issue admin /O=system:masters/CN=admin extendedKeyUsage=clientAuth
openssl genrsa -out sa.key 2048 2>/dev/null
cat > kubeconfig <<YAML
apiVersion: v1
kind: Config
current-context: stagecoach
clusters: [{name: stagecoach, cluster: {server: "https://10.96.0.1:443", certificate-authority-data: $(base64 -w0 ca.crt)}}]
contexts: [{name: stagecoach, context: {cluster: stagecoach, user: admin}}]
users: [{name: admin, user: {client-certificate-data: $(base64 -w0 admin.crt), client-key-data: $(base64 -w0 admin.key)}}]
YAML
