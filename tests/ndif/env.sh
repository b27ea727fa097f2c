# What the server's processes are told; see run.sh for NDIF_WORK and NDIF_VENV.
export PATH=$NDIF_VENV/bin:$PATH
export HF_ENDPOINT=http://127.0.0.1:8765 HF_HOME=$NDIF_WORK/hub_server HF_HUB_DISABLE_TELEMETRY=1
unset HF_HUB_OFFLINE TRANSFORMERS_OFFLINE
export NDIF_REDIS_URL=redis://127.0.0.1:6390 NDIF_OBJECT_STORE_URL=http://127.0.0.1:9010
export NDIF_OBJECT_STORE_ACCESS_KEY=x NDIF_OBJECT_STORE_SECRET_KEY=x
export NDIF_API_PORT=8001 NDIF_API_URL=http://127.0.0.1:8001 NDIF_RAY_ADDRESS=ray://127.0.0.1:10001
export NDIF_DEFAULT_DTYPE=float32 NDIF_SANDBOX_POOL_SIZE=1 NDIF_HOME=$NDIF_WORK/home
export NDIF_MODEL_IMPORT_PATH=ndif_cpu.CPUSandboxActor NDIF_CONTROLLER_IMPORT_PATH=ndif_cpu.CPUController
export PYTHONPATH=$here/plugin
# the cluster lives on loopback in a namespace of its own; a token of another Ray in this home is none of its business
export RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0 GRPC_ENABLE_FORK_SUPPORT=0 OMP_NUM_THREADS=1
export NO_PROXY=127.0.0.1,localhost no_proxy=127.0.0.1,localhost
