"""From needs to a layout: how many shards, slices and orders (``s3t plan``; docs/CAPACITY.md).

:mod:`~s3t.planner.work` counts what a plan's training and rebuilds cost, :mod:`~s3t.planner.price` what that is on a machine
and a model, :mod:`~s3t.planner.options` weighs layouts against each other.
"""
