"""Preloaded into the ranks' server just before the code that trains: what a record says of it is of that moment."""

from bnbench.provenance import note_code

note_code()
