#!/usr/bin/env bash
# Evaluates a model on LIBERO by the simulator's own success: no critic, no Redis, nothing of training. Run it in
# SimpleVLA-RL's checkout.
#
# Both val_only and val_before_train have to be True: SimpleVLA-RL reads the first only where the second is set, and
# trains otherwise.
set -euo pipefail

: "${MODEL_PATH:?set MODEL_PATH to the folder of an OpenVLA-OFT model}"
export ROBOT_PLATFORM=LIBERO
export TOKENIZERS_PARALLELISM=true

SUITE=${SUITE:-libero_10}
NUM_GPUS=${NUM_GPUS:-8}
EXPERIMENT=${EXPERIMENT:-eval-openvla-oft-$SUITE}
RUNTIME_ENV=${RUNTIME_ENV:-align.json}

bash examples/overwrite_vla_ckpt_utils.sh "$MODEL_PATH"

rollout=actor_rollout_ref.rollout
python -u -m verl_adapter.main_ppo \
    trainer.val_only=True \
    trainer.val_before_train=True \
    data.task_suite_name="$SUITE" \
    data.num_trials_per_task=50 \
    data.n_samples=8 \
    data.train_batch_size=64 \
    data.val_batch_size=496 \
    actor_rollout_ref.model.path="$MODEL_PATH" \
    actor_rollout_ref.model.vla=openvla-oft \
    actor_rollout_ref.model.action_token_len=7 \
    actor_rollout_ref.model.action_chunks_len=8 \
    actor_rollout_ref.actor.ppo_micro_batch_size="$NUM_GPUS" \
    $rollout.name=hf \
    $rollout.task_suite_name="$SUITE" \
    $rollout.unnorm_key="$SUITE" \
    $rollout.pretrained_checkpoint="$MODEL_PATH" \
    $rollout.experiment_name="$EXPERIMENT" \
    $rollout.val_micro_batch_size=8 \
    $rollout.num_steps_wait=10 \
    $rollout.max_prompt_length=512 \
    $rollout.log_prob_micro_batch_size=32 \
    $rollout.tensor_model_parallel_size=1 \
    algorithm.adv_estimator=grpo \
    algorithm.kl_ctrl.kl_coef=0.00 \
    trainer.logger="['console']" \
    trainer.project_name=SimpleVLA-RL \
    trainer.experiment_name="$EXPERIMENT" \
    trainer.n_gpus_per_node="$NUM_GPUS" \
    trainer.nnodes=1 \
    trainer.runtime_env="$RUNTIME_ENV" \
    "$@"
