#!/bin/bash
# Train on whole hosts: sbatch --nodes 4 slurm.sh CONFIG [OPTIONS OF llama-fast train]
#SBATCH --job-name=llama-fast
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
: "${1:?usage: sbatch slurm.sh CONFIG [OPTIONS]}"

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# If a host fails, the step ends and Slurm requeues the job. At the time limit Slurm does not requeue
# it, but sends USR1 two minutes before.
trap 'scontrol requeue "$SLURM_JOB_ID"' USR1
srun --kill-on-bad-exit=1 torchrun \
  --nnodes "$SLURM_NNODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" \
  --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$first:29500" \
  -m llama_fast train "$@" &
wait $!
