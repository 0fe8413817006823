"""Joins the critic to SimpleVLA-RL, without editing, copying or vendoring any of it."""
