"""A host that exists only on paper: for rehearsals, tutorials and tests. It is strict, and it can be told to fail."""

from drivers.simulated.compute import SimulatedCompute
from drivers.simulated.faults import Fault
from drivers.simulated.world import World

__all__ = ["Fault", "SimulatedCompute", "World"]
