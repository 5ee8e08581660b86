"""Preloaded first into the ranks' server: Ctrl-C while it imports torch ends it without a traceback."""

import signal

from bnbench.signals import FROM_OUTSIDE, ignore

# A stop asked of the whole group: the ranks make their checkpoints, and this server ends when their starter does.
ignore(FROM_OUTSIDE)
signal.signal(signal.SIGINT, signal.SIG_DFL)  # once it serves, multiprocessing has it ignore Ctrl-C
