"""How a normalised band becomes a number of eight bits: shared by the network's first layers and by its INT8 file."""

STEPS = 24  # in one standard deviation
MIDDLE = 128  # the number that stands for the mean
