#!/bin/bash
# The server's processes; runs inside `unshare --net --pid --fork --mount-proc --kill-child` (see run.sh), so that all is
# on loopback and one kill ends everything. Prints READY once the API is connected to its backend.
here=$(cd "$(dirname "$0")" && pwd)
cd "${NDIF_WORK:?a scratch folder}" || exit 1
. "$here/env.sh"
ip link set lo up
began=$SECONDS
fail() { echo "FAILED: $1"; tail -5 "$2"; exit 1; }
python "$here/minihub.py" 8765 "${NDIF_REPO:?org/name}=${NDIF_CHECKPOINT:?its folder}" > hub.log 2>&1 &
redis-server --port 6390 --bind 127.0.0.1 --save "" --appendonly no > redis.log 2>&1 &
moto_server -H 127.0.0.1 -p 9010 > moto.log 2>&1 &
rm -rf "${NDIF_WORK:?}/ray"
# one pretended GPU: NDIF places models on GPUs only
ray start --head --node-ip-address=127.0.0.1 --port=6385 --num-cpus=4 --num-gpus=1 --object-store-memory=200000000 \
  --resources='{"head":10,"cuda_memory_bytes":8000000000,"cpu_memory_bytes":8000000000}' \
  --ray-client-server-port=10001 --include-dashboard=true --dashboard-host=127.0.0.1 --dashboard-port=8265 \
  --disable-usage-stats --temp-dir="$NDIF_WORK/ray" > ray_start.log 2>&1 || fail "ray" ray_start.log
echo "ray after $((SECONDS - began)) s"
RAY_ADDRESS=127.0.0.1:6385 python -m ndif.services.ray.deployments.controller.controller > controller.log 2>&1 \
  || fail "controller" controller.log
echo "controller after $((SECONDS - began)) s"
gunicorn --config python:ndif.services.api.gunicorn_conf --bind 127.0.0.1:8001 ndif.services.api.app:app > api.log 2>&1 &
for _ in $(seq 120); do
  state=$(curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8001/connected)
  [ "$state" = 200 ] && echo "READY after $((SECONDS - began)) s" && sleep infinity
  sleep 1
done
fail "the API was not connected within two minutes" api.log
