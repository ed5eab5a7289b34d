"""The production line: a trained model in, verified artifacts and a report out."""
