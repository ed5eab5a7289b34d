"""Files that engines and tool chains of chips take, written from a graph and its plan.

A module with a `PLUGIN` is a format that a target names in `export`: a function (graph, plan) that
gives {file suffix: bytes}. The others are the file formats of engines, written by their adapters.
"""
