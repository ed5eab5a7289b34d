"""Perception tasks: how a model is fed (card), data, decoders and scores.

A task is a file here with a `PLUGIN`, a decoder is a file in `decoders/` with one; see
`modelmill.tasks.task`.
"""

from modelmill.tasks.boxes import Boxes, Objects, objects
from modelmill.tasks.card import (
    Card,
    CardError,
    Input,
    Output,
    Resize,
    card_from_json,
    check_card,
    default_card_path,
    load_card,
)
from modelmill.tasks.data import Batches, Dataset, Sample, batches, open_data, split
from modelmill.tasks.images import DataError, Prepare, prepare
from modelmill.tasks.predictions import pack, unpack
from modelmill.tasks.score import Score, evaluate
from modelmill.tasks.task import Task

__all__ = [
    "Batches",
    "Boxes",
    "Card",
    "CardError",
    "DataError",
    "Dataset",
    "Input",
    "Objects",
    "Output",
    "Prepare",
    "Resize",
    "Sample",
    "Score",
    "Task",
    "batches",
    "card_from_json",
    "check_card",
    "default_card_path",
    "evaluate",
    "load_card",
    "objects",
    "open_data",
    "pack",
    "prepare",
    "split",
    "unpack",
]
