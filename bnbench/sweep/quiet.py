"""Preloaded first into the ranks' server: Ctrl-C while it imports torch ends it without a traceback."""

import signal

# A stop asked of the whole group: the ranks make their checkpoints, and this server ends when their starter does.
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_DFL)  # once it serves, multiprocessing has it ignore Ctrl-C
