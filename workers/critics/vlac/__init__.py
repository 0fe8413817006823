"""The critic `vlac`: the VLAC model, through the user's own evo_vlac and ms-swift.

    installation  what must be there, and the command that mends it
    model         GAC_model on an engine: one call of the model, offloading
    vllm_engine   vLLM as that engine; shared_images: how it gets the images of rows
    features      each frame's features on torch, kept; prefix: what rows begin with, computed once
    likeliest     the tokens that a rich answer on torch weighs
    images        what both begin with: frames made ready
    calls         how rows become calls: sizes, memory that runs out, rows that fail
    rows          what is asked for a query, and how the answers are read
    ahead         pair scores asked while nobody waits
    critic        `VlacCritic`, which puts them together

Only `model` and what it names for torch import torch, ms-swift and evo_vlac, and only when the weights are loaded.
"""

from workers.critics.vlac.critic import VlacCritic

__all__ = ["VlacCritic"]
