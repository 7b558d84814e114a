#!/bin/bash
# Encode a source in shards on a Ray cluster, then join them:
#
#     examples/ray_cluster.sh /data/photos /data/model /data/codes 64
#
# Before, on the first node:      ray start --head --port=6379
# and on each of the others:      ray start --address=HEAD:6379
# All nodes see the source, the model and the folder of codes at the same place, and have distillhash[ray] in the same versions. Without
# a cluster, Ray runs on this machine. After a failure run the same command again: what was written is skipped.
set -euo pipefail
source=$1 model=$2 out=$3 shards=${4:-64}

distillhash encode "$source" --model "$model" --shard "all/$shards" --out "$out" --engine ray --no-cache
distillhash merge "$out" --out "$out.parquet"
