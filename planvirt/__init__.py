"""The words of planvirt: what a plan says, what a run records, what an error tells. Nothing here acts."""

__version__ = "0.1.0"
