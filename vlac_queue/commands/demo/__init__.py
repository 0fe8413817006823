"""The demo: recorded or live Meta-World episodes, played through the real queue (`vlac-queue demo`)."""
