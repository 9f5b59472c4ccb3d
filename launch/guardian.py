"""Ends what a killed optbench left of a run. Standard library alone: it starts in a blink and sleeps in a read.

Ranks die with their parents, but a process that a rank's code started and that left its session would live on. The
launcher holds the write end of a pipe to this process: a byte dismisses it, the end of the pipe means that the
launcher is gone.
"""

import os
import signal
import sys
import time

LIMIT_S = 10.0


def carriers(marker: bytes) -> list[int]:
    """Return the processes whose environment holds ``NAME=value``; none where there is no /proc."""
    found = []
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else []:  # noqa: PTH208, PTH112  # pathlib starts slower
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                with open(f"/proc/{entry}/environ", "rb") as file:  # noqa: PTH123  # likewise
                    if marker in file.read().split(b"\0"):
                        found.append(int(entry))
            except OSError:  # it ended, or is another user's
                continue
    return found


def main() -> None:
    """Wait for the byte or the end of the pipe; then kill whoever carries the marker, and remove the folders."""
    if sys.stdin.buffer.read(1):
        return
    deadline = time.monotonic() + LIMIT_S
    while (left := carriers(sys.argv[1].encode())) and time.monotonic() < deadline:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                continue
        time.sleep(0.05)
    for folder in sys.argv[2:]:
        import shutil  # not in the way of a start

        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
