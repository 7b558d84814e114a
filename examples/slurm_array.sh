#!/bin/bash
# Encode a source in 64 shards as a Slurm array, then join them:
#
#     export SOURCE=/data/photos MODEL=/data/model OUT=/data/codes
#     job=$(sbatch --parsable examples/slurm_array.sh)
#     sbatch --dependency=afterok:$job --wrap "distillhash merge $OUT --out $OUT.parquet"
#
# What was written is skipped: after a failure submit the same array again, or the missing shards alone (sbatch --array=3,17 ...).
# SHARDS is the number of all shards, whichever of them are submitted.
#SBATCH --job-name=encode
#SBATCH --array=0-63
#SBATCH --cpus-per-task=2
#SBATCH --mem=4G
#SBATCH --time=04:00:00
#SBATCH --requeue
set -euo pipefail
: "${SOURCE:?}" "${MODEL:?}" "${OUT:?}"

exec distillhash encode "$SOURCE" --model "$MODEL" --shard "$SLURM_ARRAY_TASK_ID/${SHARDS:-64}" --out "$OUT" --no-cache --quiet
