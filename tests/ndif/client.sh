#!/bin/bash
# A command inside the server's network namespace: client.sh python script.py ... NDIF_CHILD is the namespace's first pid.
export HF_ENDPOINT=http://127.0.0.1:8765 HF_HOME=${NDIF_WORK:?}/hub_client HF_HUB_DISABLE_TELEMETRY=1 NO_COLOR=1
export NO_PROXY=127.0.0.1,localhost no_proxy=127.0.0.1,localhost OMP_NUM_THREADS=1
export HF_HUB_OFFLINE=0 TRANSFORMERS_OFFLINE=0
exec nsenter -t "${NDIF_CHILD:?}" -n -- "$@"
