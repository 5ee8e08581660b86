"""`bnbench VERB ...`: each verb is imported when it is called, so that help is instant."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec

VERBS = {
    "train": "one run, or with -m a sweep, on the ranks of one world",
    "plan": "what train would do with the same words, what is invalid, and how long it takes",
    "report": "records to a page: verdicts in words, error against normalization batch size, costs",
    "sync": "send what Weights & Biases lacks of finished runs, each row once",
    "scale": "what SyncBN would cost on 1 to 4096 GPUs, from what the ranks at hand take",
    "doctor": "what this machine can do, and what to do about what is missing",
    "bench": "measure what bnbench itself costs, as ratios in one run",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 1 if something failed, 2 for a user's mistake, 130 on Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    verb, rest = (words[0], words[1:]) if words else ("--help", [])
    if verb in ("-h", "--help"):
        print(_help())
        return 0
    if verb == "--version":
        from bnbench import __version__

        print(f"bnbench {__version__}")
        return 0
    try:
        return _call(verb, rest)
    except ValueError as error:
        from bnbench.mistake import is_told

        if is_told(error):
            from bnbench.launch import place_given, speaks

            if not speaks(place_given()):
                return 0  # torchrun ends all ranks once one fails: it must be the one that tells why
            print(f"bnbench {verb}: {error}", file=sys.stderr)
            return 2
        raise
    except KeyboardInterrupt:
        print("bnbench: interrupted; what is finished is kept, the same command goes on", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `bnbench ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _call(verb: str, rest: list[str]) -> int:
    if verb == "train":
        if {"-h", "--help"} & set(rest):
            from bnbench.help import train_help

            print(train_help())
            return 0
        if find_spec("torch") is None or find_spec("hydra") is None:
            raise ValueError(
                "what trains is not installed here: pip install '.[train]' in bnbench's checkout"
            )
        from bnbench import train

        return train.main(rest)
    if verb == "plan":
        if {"-h", "--help"} & set(rest):
            from bnbench.help import plan_help

            print(plan_help())
            return 0
        if find_spec("hydra") is None:
            raise ValueError(
                "what composes runs is not installed here: pip install '.[train]' in bnbench's checkout"
            )
        from bnbench import plan

        return plan.main(rest)
    if verb == "report":
        from bnbench import report

        gc.disable()  # what is read stays to the end of this process
        try:
            return report.main(rest)
        finally:
            gc.freeze()  # nor need Python look through all of it at its end
            gc.enable()
    if verb == "sync":
        from bnbench import sync

        return sync.main(rest)
    if verb == "scale":
        if not {"-h", "--help"} & set(rest) and (find_spec("torch") is None or find_spec("hydra") is None):
            raise ValueError(
                "what measures is not installed here: pip install '.[train]' in bnbench's checkout"
            )
        from bnbench import scale

        return scale.main(rest)
    if verb == "doctor":
        from bnbench import doctor

        return doctor.main(rest)
    if verb == "bench":
        from bnbench import benchmarks

        return benchmarks.main(rest)
    from bnbench.suggest import unknown

    raise ValueError(unknown("verb", verb, VERBS))


def _help() -> str:
    from bnbench import __version__

    verbs = "\n".join(f"  {verb:8} {meaning}" for verb, meaning in VERBS.items())
    return (
        f"bnbench {__version__}: which normalization layer should this CNN use, and what does it cost?\n\n"
        f"usage: bnbench VERB ...\n\n{verbs}\n\nbnbench VERB --help says more."
    )


if __name__ == "__main__":
    sys.exit(main())
