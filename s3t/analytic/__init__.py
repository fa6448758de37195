"""An analytic head on a frozen backbone: exact integer statistics of the records, and what is solved from them.

A record's features are quantised to integers by constants, so the sums over records are integers too: adding a record and
removing it again leaves every bit as it was, in whatever order that happens. What serves is a function of those sums alone,
hence of the set of retained records (docs/ANALYTIC.md).
"""
