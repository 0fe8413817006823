"""SimpleVLA-RL with a learned critic: `python -m verl_adapter.main_ppo <its usual overrides> vlac.redis_url=...`.

SimpleVLA-RL (PRIME-RL/SimpleVLA-RL, package `verl`) is imported from the user's checkout; docs/simplevla-rl.md
says what changes and what does not. Modules that need it, or torch: `rollout`, `trainer`, `plugin`, `driver`.
"""
