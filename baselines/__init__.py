"""Baselines: other plans over the same graph, engine, data path and cost accounting as S3T."""
