"""One file for every version of the schema; `revision` is its number."""
