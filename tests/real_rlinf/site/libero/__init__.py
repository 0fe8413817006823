"""A `libero` in miniature, for RLinf's LiberoEnv: its simulator shows what the initial state says."""
