"""`vlac-queue export`: what a decision log teaches its critic.

truth.py tells for each frame whether it is done, negatives.py writes frames that fooled the critic `reference`,
swift.py a fine-tuning set for VLAC in the prompts of prompts.py, command.py has the options.
"""
