"""Works of the suite cut short at every write, by a kill and by a loss of power: ``python -m verify crashes``."""
