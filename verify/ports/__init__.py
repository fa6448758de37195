"""Ports of two reference designs with their known mistakes, audited as third-party systems (docs/PORTS.md).

Written from a published description of the mistakes, not from anybody's code: each mistake is a switch, all off is a clean
simple system that must pass, all on is the port.
"""
