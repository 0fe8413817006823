"""A user's own `external_lib`."""

print("the user's own module is here", flush=True)
