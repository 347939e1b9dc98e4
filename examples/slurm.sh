#!/bin/bash
# Trains under SLURM for as long as it takes, one time limit after another.
#
#     sbatch --job-name mine examples/slurm.sh -c configs/demo.yaml --trainer.strategy FSDP2
#
# Two minutes before the limit SLURM sends SIGTERM to every process: they finish their step, write a checkpoint and
# leave with status 143; the job puts itself back into the queue, and its next start goes on where this one stopped.
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --gpus-per-node=2
#SBATCH --time=08:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append

run_dir=runs/$SLURM_JOB_NAME
if compgen -G "$run_dir/checkpoints/step=*.ckpt" > /dev/null; then
    options=(--resume)
else
    options=("$@" --trainer.num_nodes "$SLURM_NNODES" --trainer.devices "$SLURM_NTASKS_PER_NODE")
fi

srun --kill-on-bad-exit=1 lit-small-lm fit --run_dir "$run_dir" "${options[@]}"
status=$?
if [ $status -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
