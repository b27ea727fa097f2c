#!/bin/bash
# Brings NDIF's published server up on this machine (CPU, loopback, a network namespace of its own), runs
# check_real_server.py against it and takes it down again; prints how long that took and what memory it had.
# Needs: root (for the namespace), redis-server, curl, a Python with venv. NDIF_HOME_FOLDER: where it installs (build/ndif)
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
base=${NDIF_HOME_FOLDER:-$root/build/ndif}
export NDIF_VENV=$base/venv NDIF_WORK=$base/run NDIF_REPO=dream/demo NDIF_CHECKPOINT=$root/nnsight_dream/data/vlm
client=${CLIENT_PYTHON:-$root/.venv/bin/python}
for tool in redis-server unshare nsenter curl ip; do
  command -v $tool > /dev/null || { echo "$tool is missing (apt-get install redis-server util-linux curl iproute2)"; exit 2; }
done
if [ ! -f "$NDIF_VENV/.ready" ]; then
  echo "installing the server into $NDIF_VENV"
  # what the server runs, pinned; ndif asks for Python 3.12 on paper, and its pure Python runs on 3.11
  ${PYTHON:-python3} -m venv "$NDIF_VENV" \
    && "$NDIF_VENV/bin/pip" install --quiet --disable-pip-version-check "${TORCH:-torch==2.13.0}" nnsight==0.8.1 \
      transformers==5.23.0 accelerate==1.15.0 pillow peft \
    && "$NDIF_VENV/bin/pip" install --quiet --disable-pip-version-check --ignore-requires-python \
      "ndif[api,ray]==0.1.2" ray==2.60.0 "moto[server]==5.2.5" fastapi==0.165.0 anyio==4.16.0 || exit 1
  touch "$NDIF_VENV/.ready"
fi
mkdir -p "$NDIF_WORK"
began=$SECONDS
unshare --net --pid --fork --mount-proc --kill-child bash "$here/up.sh" > "$NDIF_WORK/up.log" 2>&1 &
space=$!
down() { kill -9 "$(pgrep -P $space)" 2> /dev/null; wait $space 2> /dev/null; }  # the namespace's first process: all end
trap down EXIT
trap 'exit 130' INT TERM
until grep -q "^READY" "$NDIF_WORK/up.log"; do
  if grep -q "^FAILED" "$NDIF_WORK/up.log" || ! kill -0 $space 2> /dev/null || [ $((SECONDS - began)) -gt 300 ]; then
    cat "$NDIF_WORK/up.log"; echo "the server did not come up"; exit 1
  fi
  sleep 1
done
cat "$NDIF_WORK/up.log"
export NDIF_CHILD=$(pgrep -P $space) NDIF_HOST=http://127.0.0.1:8001
"$here/client.sh" "$client" -m pytest -q -p no:cacheprovider -p no:randomly "$here/check_real_server.py" "$@"
status=$?
# proportional share of each process's memory, in MB: what would be free without it
memory=$(for p in $(pgrep -g 0 2> /dev/null; ps -eo pid=,ppid= | awk -v top="$NDIF_CHILD" '
  {parent[$1]=$2} END {for (p in parent) {q=p; while (q>1 && q!=top) q=parent[q]; if (q==top) print p}}'); do
  awk '/^Pss:/ {sum+=$2} END {print sum+0}' "/proc/$p/smaps_rollup" 2> /dev/null; done | awk '{s+=$1} END {printf "%d", s/1024}')
down
echo "NDIF's server and these checks: $((SECONDS - began)) s, the server's memory at the end $memory MB"
exit $status
