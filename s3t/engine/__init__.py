"""Numeric engines by kernel name: the reference (PEFT through all layers) and the fast one (docs/ENGINE.md)."""
