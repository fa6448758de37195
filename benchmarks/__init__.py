"""Benchmarks: one question each, answered in rows that are evidence; figures and tables are drawn from rows alone."""
