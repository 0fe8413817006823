"""`vlac-queue acl`."""
