"""Preloaded first into the ranks' server: Ctrl-C while it imports torch ends it without a traceback."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # once it serves, multiprocessing has it ignore Ctrl-C
