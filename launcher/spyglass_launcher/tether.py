"""Runs a command that is killed when the process that started it dies, however it dies.

A separate program (`python tether.py PARENT_PID COMMAND…`) that becomes the command. So the tie is made in the child,
before the command runs, without code between fork and exec. Linux only; elsewhere the command just runs. Imports
little, because it runs before every start.
"""

import os
import signal
import sys


def main() -> None:
    """Ties this process to its parent and becomes the command."""
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1
        if ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGKILL) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
        if os.getppid() != int(parent):  # it died before the tie was made
            sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
