"""`vlac-queue score`: a recorded run through the queue, its figures as VLAC has them, and its picture."""
