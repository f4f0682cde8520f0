"""The journal: what every run intended, did and undid, and which run owns which instance. It outlives the process."""
