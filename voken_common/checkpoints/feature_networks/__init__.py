"""Networks of other projects whose features metrics compare: their layers as data, and their weight files."""
