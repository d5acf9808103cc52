"""Worker processes that do not outlive the process that started them."""

import multiprocessing
import os
import threading
from multiprocessing.connection import wait


def end_with_parent(*_: int) -> None:
    """To be called first in a worker, which otherwise would wait for ever for a parent that was
    killed.

    Arguments, such as Grain's number of a worker, are ignored.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, 'expected a process that multiprocessing started'
    threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
