"""Orders in which a shard's slices are trained (arXiv 2406.16257, section 3.2; docs/DERIVATION.md, "Orders").

:func:`cyclic` needs no prior; :func:`matching` and :func:`conditional` use the probability that a request falls in each
slice; :func:`best` maximises what is served, the expected length of the best surviving chain. numpy and scipy only.
"""

from s3t.orders.growth import matching
from s3t.orders.optimum import Choice, best, choose
from s3t.orders.rotations import cyclic
from s3t.orders.rule import RULES, Rule
from s3t.orders.sampling import conditional, random
from s3t.orders.value import expected_best

__all__ = ["RULES", "Choice", "Rule", "best", "choose", "conditional", "cyclic", "expected_best", "matching", "random"]
