#!/usr/bin/env bash
# One node or several by torchrun. Run the same line on every node, with the first one's address:
#   NODES=2 GPUS=8 HEAD=10.0.0.1 bash docs/cluster/torchrun.sh var fit -c d30 --trainer fsdp
# runs/ must be a folder that all nodes see. To stop: Ctrl-C on any node; the same line goes on.
set -euo pipefail
: "${NODES:=1}" "${GPUS:=8}" "${HEAD:=127.0.0.1}" "${PORT:=29500}"
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes "$NODES" --nproc_per_node "$GPUS" \
    --rdzv_backend c10d --rdzv_endpoint "$HEAD:$PORT" --rdzv_id varlit \
    -m varlit "$@" --trainer.num_nodes "$NODES" --trainer.devices "$GPUS"
