"""The will of planvirt: what the verbs do, and how a plan becomes a run that can be undone."""
