"""The stock pipeline: S3T's schedule written the usual way, with transformers' Trainer and PEFT, as opponent of the engine.

Per shard and order one chain: base model, a new LoRA adapter per stage over the frozen ones before it, Trainer on the records
of the prefix, adapter and head saved. Full forward passes, batches padded to their longest row. Its modules are imported
where they are used, for the Trainer takes seconds to load.
"""
