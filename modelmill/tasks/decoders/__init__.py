"""Decoders, one per file: from a graph's outputs to predictions; see `modelmill.tasks.task`."""
