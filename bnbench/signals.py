"""The signals that ask bnbench to stop. No torch."""

import signal

# SLURM: TERM on preemption, `--signal`'s choice ahead of a time limit. HUP: the terminal or the connection is gone.
FROM_OUTSIDE = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
SIGNALS = (*FROM_OUTSIDE, signal.SIGINT)


def ignore(numbers: tuple[signal.Signals, ...]) -> None:
    """For a process that ends when another does, which hears them."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)
