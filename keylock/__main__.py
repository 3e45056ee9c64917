"""The `keylock` command, which is `python -m keylock` too: from its first import to the last moment of its process.

Little is imported before the command line itself is, so that Ctrl-C has a place to go to by then.
"""

import signal
import sys

__all__ = ["run"]

_INTERRUPTED = 130


def run() -> int:
    """Run one command of this process, which ends after it; return its exit code.

    Ctrl-C before and after the command shows no traceback. Afterwards neither it nor SIGTERM changes how the command
    has ended.
    """
    try:
        from keylock.cli import main

        return main()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return _INTERRUPTED
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(run())
