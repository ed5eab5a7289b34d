"""Quantization steps: one file, one step, each `(Graph, Plan, Batches) -> (Graph, Plan)`."""
