#!/bin/bash
# Two nodes of eight GPUs under Slurm: sbatch slurm.sh RECIPE [--option value ...]
#SBATCH --job-name=liere_hf
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail

# The output directory has everything to resume a run: a requeued job continues from its last checkpoint.
output_dir=${OUTPUT_DIR:-runs/$1_$SLURM_JOB_ID}
resume=false
if compgen -G "$output_dir/checkpoint-*" >/dev/null; then resume=true; fi

main_address=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
main_port=$((10000 + SLURM_JOB_ID % 50000))
config=$(liere-hf launch-config two_nodes)
export OMP_NUM_THREADS=1

# --signal=TERM@120 is sent two minutes before the time limit: the processes save a checkpoint and stop.
srun --kill-on-bad-exit=1 bash -c '
  exec accelerate launch --config_file "$0" --num_machines "$SLURM_NNODES" \
    --num_processes "$((SLURM_NNODES * SLURM_GPUS_ON_NODE))" --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$1" --main_process_port "$2" -m liere_hf train "${@:3}"
' "$config" "$main_address" "$main_port" "$@" --output_dir "$output_dir" --resume_from_checkpoint "$resume"
