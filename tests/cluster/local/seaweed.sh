#!/usr/bin/env bash
# cluster.sh exec seaweed.sh start|stop|wait: SeaweedFS at http://10.88.0.1:8333 for pods and tests alike (keys testkey / testsecret).
# Its files lie under /run/s3: `stop` keeps them, so that a test can take the store away for a while.
set -euo pipefail
wait_ready() {
  for _ in $(seq 600); do
    curl -s -m 2 -o /dev/null http://10.88.0.1:8333/ && return 0
    sleep 0.2
  done
  echo "SeaweedFS did not answer: see /run/s3/log inside the cluster" >&2
  return 1
}
case ${1:-start} in
  start)
    curl -s -m 2 -o /dev/null http://10.88.0.1:8333/ && exit 0
    mkdir -p /run/s3
    echo '{"identities":[{"name":"t","credentials":[{"accessKey":"testkey","secretKey":"testsecret"}],"actions":["Admin","Read","Write","List","Tagging"]}]}' > /run/s3/s3.json
    setsid weed server -dir /run/s3 -ip 10.88.0.1 -ip.bind 10.88.0.1 -s3 -s3.port 8333 -s3.config /run/s3/s3.json \
      -master.volumeSizeLimitMB 64 -volume.max 60 >> /run/s3/log 2>&1 < /dev/null &
    echo $! > /run/s3/pid
    wait_ready ;;
  stop) kill -9 "$(cat /run/s3/pid)" ;;
  wait) wait_ready ;;
esac
