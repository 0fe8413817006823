#!/usr/bin/env bash
# Trains OpenVLA-OFT on LIBERO with SimpleVLA-RL, rewarded by the critic. Run it in SimpleVLA-RL's checkout, with
# vlac-queue installed in the same environment on every node, and at least one worker on the queue:
#
#   RQ_REDIS_URL=$VLAC_REDIS_URL RQ_WORKER_CLASS=workers.CriticWorker VLAC_MODEL_PATH=... rq worker vlac --with-scheduler
#
# Against a launch script that trains already, one line differs: verl.trainer.main_ppo is verl_adapter.main_ppo, and
# Redis is named (here by the environment, so that a password stays out of configs and logs).
set -euo pipefail

: "${VLAC_REDIS_URL:?set VLAC_REDIS_URL, e.g. redis://gpu7:6379/0}"
: "${SFT_MODEL_PATH:?set SFT_MODEL_PATH to the folder of an OpenVLA-OFT model fine-tuned for the suite}"
: "${CKPT_PATH:?set CKPT_PATH to the folder for checkpoints}"
export VLAC_REDIS_URL
export ROBOT_PLATFORM=LIBERO
export TOKENIZERS_PARALLELISM=true

SUITE=${SUITE:-libero_10}          # or libero_spatial, libero_object, libero_goal, libero_90
NUM_GPUS=${NUM_GPUS:-8}            # per node
NUM_NODES=${NUM_NODES:-1}
EXPERIMENT=${EXPERIMENT:-openvla-oft-$SUITE-vlac}
RUNTIME_ENV=${RUNTIME_ENV:-align.json}

bash examples/overwrite_vla_ckpt_utils.sh "$SFT_MODEL_PATH"

rollout=actor_rollout_ref.rollout
actor=actor_rollout_ref.actor
python -u -m verl_adapter.main_ppo \
    data.task_suite_name="$SUITE" \
    data.num_trials_per_task=50 \
    data.n_samples=8 \
    data.filter_accuracy=True \
    data.train_batch_size=64 \
    data.val_batch_size=496 \
    data.max_prompt_length=256 \
    data.max_response_length=128 \
    actor_rollout_ref.model.path="$SFT_MODEL_PATH" \
    actor_rollout_ref.model.vla=openvla-oft \
    actor_rollout_ref.model.action_token_len=7 \
    actor_rollout_ref.model.action_chunks_len=8 \
    $actor.optim.lr=5e-6 \
    $actor.ppo_mini_batch_size=128 \
    $actor.ppo_micro_batch_size="$NUM_GPUS" \
    $actor.fsdp_config.grad_offload=True \
    $actor.fsdp_config.optimizer_offload=True \
    $actor.grad_clip=1 \
    $actor.clip_ratio_high=0.28 \
    $actor.clip_ratio_low=0.2 \
    $actor.traj_mini_batch_size=16 \
    $actor.entropy_coeff=0. \
    $rollout.name=hf \
    $rollout.task_suite_name="$SUITE" \
    $rollout.unnorm_key="$SUITE" \
    $rollout.pretrained_checkpoint="$SFT_MODEL_PATH" \
    $rollout.experiment_name="$EXPERIMENT" \
    $rollout.temperature=1.6 \
    $rollout.micro_batch_size=1 \
    $rollout.val_micro_batch_size=8 \
    $rollout.num_steps_wait=10 \
    $rollout.max_prompt_length=512 \
    $rollout.log_prob_micro_batch_size=32 \
    $rollout.tensor_model_parallel_size=1 \
    actor_rollout_ref.ref.log_prob_micro_batch_size=32 \
    actor_rollout_ref.ref.fsdp_config.param_offload=True \
    algorithm.adv_estimator=grpo \
    algorithm.kl_ctrl.kl_coef=0.00 \
    trainer.logger="['console']" \
    trainer.project_name=SimpleVLA-RL \
    trainer.experiment_name="$EXPERIMENT" \
    trainer.default_local_dir="$CKPT_PATH/$EXPERIMENT" \
    trainer.n_gpus_per_node="$NUM_GPUS" \
    trainer.nnodes="$NUM_NODES" \
    trainer.save_freq=25 \
    trainer.test_freq=4 \
    trainer.total_epochs=100 \
    trainer.val_before_train=True \
    trainer.val_only=False \
    trainer.runtime_env="$RUNTIME_ENV" \
    "$@"
