#!/bin/bash
# Trains on all GPUs of some nodes, and goes on where it was when it is preempted or runs out of time.
#   sbatch deploy/slurm.sh data/packed /shared/runs/eurosat --config configs/experiments/eurosat.yaml
# Pack and run folder must be on a file system that all nodes see.
#SBATCH --job-name=tilewise
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120

set -euo pipefail
pack=${1:?usage: sbatch slurm.sh PACK RUN [options of tilewise train]}
run=${2:?usage: sbatch slurm.sh PACK RUN [options of tilewise train]}
shift 2

# Each process saves nothing of its own: all agree on a step, the first writes last.ckpt, and all end with status 143.
status=0
srun --kill-on-bad-exit=0 tilewise train fit "$@" \
  --data.pack="$pack" --out="$run" --ckpt_path=last \
  --trainer.accelerator=gpu --trainer.strategy=ddp \
  --trainer.num_nodes="$SLURM_NNODES" --trainer.devices="$SLURM_NTASKS_PER_NODE" || status=$?

if [ "$status" -eq 143 ]; then
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
[ "$status" -eq 0 ] || exit "$status"
# Figures and the model file come from one process: they do not depend on how many there are.
srun --nodes=1 --ntasks=1 --gpus=1 bash -c \
  "tilewise train test --out='$run' --trainer.num_nodes=1 --trainer.devices=1 --trainer.strategy=auto &&
   tilewise export --out='$run' --trainer.num_nodes=1 --trainer.devices=1 --trainer.strategy=auto"
