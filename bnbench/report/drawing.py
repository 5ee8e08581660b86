"""The figure, drawn by a process beside: matplotlib's import and its drawing are half of a small report's time."""

from __future__ import annotations

import contextlib
import gc
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from bnbench.analysis.answer import Panel

Figure = tuple[bytes, bytes]  # PNG and SVG


class Drawing:
    """A process that imports matplotlib while its panels are worked out, and draws them while the page is written."""

    def __init__(self, beside: subprocess.Popen[bytes] | None, thread: ThreadPoolExecutor) -> None:
        self._beside, self._thread = beside, thread
        self._panels: Sequence[Panel] = ()
        self._answer: Future[tuple[bytes, bytes]] | None = None

    def begin(self, panels: Sequence[Panel]) -> None:
        self._panels = panels
        if self._beside is not None:
            self._answer = self._thread.submit(self._beside.communicate, pickle.dumps(panels))

    def result(self) -> Figure:
        """What `figures.error_against_nbs` makes of the panels, here if there is none beside or it failed."""
        if self._beside is not None and self._answer is not None:
            answer, _ = self._answer.result()
            if self._beside.returncode == 0:
                figure: Figure = pickle.loads(answer)
                return figure
        from bnbench.report import figures

        return figures.error_against_nbs(self._panels)


@contextlib.contextmanager
def drawn_beside() -> Iterator[Drawing]:
    """A `Drawing`; at the end of the context, what it has not drawn is given up."""
    beside = _start()
    with beside or contextlib.nullcontext(), ThreadPoolExecutor(1) as thread:
        try:
            yield Drawing(beside, thread)
        finally:
            if beside is not None:
                beside.kill()


def _start() -> subprocess.Popen[bytes] | None:
    """None where matplotlib is imported already, which is most of what there is to gain, or no process is to be had."""
    if "matplotlib" in sys.modules:
        return None
    # Not by multiprocessing, which would run a script that has no `if __name__ == "__main__"` once more.
    words = f"import sys; sys.path[:] = {sys.path!r}; from bnbench.report import drawing; drawing.serve()"
    with contextlib.suppress(OSError):
        return subprocess.Popen(
            [sys.executable, "-c", words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    return None


def serve() -> None:
    """The part of the process beside: panels come in, a figure goes out."""
    from bnbench.report import figures

    gc.disable()  # it ends soon
    figures.prepare()
    panels = pickle.load(sys.stdin.buffer)
    pickle.dump(figures.error_against_nbs(panels), sys.stdout.buffer)
