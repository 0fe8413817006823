"""`vlac-queue label`: the critic's progress, done scores and values of every frame of a dataset.

decoding.py reads episodes ahead, asking.py asks about many at a time, labels.py keeps what was answered and writes
it for LeRobot, summary.py and sheet.py show it, command.py has the options.
"""
