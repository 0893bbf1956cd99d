"""Processes that prepare batches.

They are forked, so that they inherit the data set instead of unpickling it. With it they inherit every lock that a
thread of the main process holds at that moment, and nobody ever opens these. So a worker runs NumPy, Pillow and what
is below, but nothing of Paddle and no logging; it destroys nothing that it inherits; and it ends without cleaning up.
The main process has no thread for it, and ends it with SIGKILL, for there is nothing that it could leave behind.
"""

import atexit
import contextlib
import gc
import itertools
import mmap
import multiprocessing
import os
import signal
import threading
import traceback
import weakref
from collections import deque
from multiprocessing import connection, reduction

import numpy as np

from passl_xcit.utils.errors import DataError

NO_SAMPLE = -1
_started = weakref.WeakSet()
# What a terminal or a scheduler sends to every process of a group; the main one decides.
FOR_THE_MAIN_PROCESS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# Paddle replaces these handlers when it is imported; its own ones are not made for a forked process.
TAKEN_OVER = (signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGBUS)


def can_fork():
    """Whether this system has what `in_workers` needs."""
    return "fork" in multiprocessing.get_all_start_methods()


def in_workers(load, tasks, num_workers, ahead=2, timeout=0, use_shared_memory=True, describe=str):
    """Yield `load(task, progress)` for each of `tasks`, in order, computed in `num_workers` processes.

    Args:
        load: returns a list of arrays, or raises an exception that can be pickled; it calls `progress(sample number)`
            before each sample, for the messages about a worker that ends or hangs, and progress(NO_SAMPLE) after all.
        ahead: tasks that each worker may finish before the first of them is asked for.
        timeout: seconds to wait for one result; 0 waits for ever.
        use_shared_memory: hand results over in anonymous memory files (Linux), which have no name that could stay
            behind and do not count for the size of /dev/shm. Otherwise through a pipe, at `ahead` = 1: a worker that
            writes a result reads no further task, and neither side must wait for the other one.
        describe: sample number -> its name in messages.

    Raises:
        DataError: when a worker ends or needs more than `timeout`, with the sample that it was reading; and what
            `load` raises.
    """
    shared = use_shared_memory and hasattr(os, "memfd_create")
    tasks, workers, owing = iter(tasks), [], deque()
    try:
        with _interrupts_wait(), _nothing_inherited_is_collected():
            for number in range(num_workers):
                workers.append(_Worker(number, load, shared, workers))
        for worker, task in zip(workers * (ahead if shared else 1), tasks):
            owing.append(worker.give(task))
        while owing:
            worker = owing.popleft()
            _wait_for(worker, workers, timeout, describe)
            answer = worker.take(describe)
            if isinstance(answer, Exception):
                raise answer
            for task in itertools.islice(tasks, 1):
                owing.append(worker.give(task))
            yield answer
    finally:
        with _interrupts_wait():
            _stop(workers)


class _Worker:
    """A process that computes one task after the other, seen from the main process."""

    def __init__(self, number, load, shared, older):
        self.number, self.shared, self.owner = number, shared, os.getpid()
        self.position = np.frombuffer(mmap.mmap(-1, 8), "int64")  # written by the process, read here
        self.position[0] = NO_SAMPLE
        self.pipe, theirs = multiprocessing.Pipe()
        # A copy of our end in a worker would keep that pipe open after our own end.
        not_theirs = [self.pipe, *(worker.pipe for worker in older)]
        self.process = multiprocessing.get_context("fork").Process(
            target=_work, args=(theirs, not_theirs, load, self.position, shared, self.owner), daemon=True
        )
        try:
            self.process.start()
        except OSError as error:
            raise DataError(
                f"data worker {number} cannot start: {error.strerror}; try a smaller num_workers"
            ) from error
        theirs.close()
        _started.add(self)

    def give(self, task):
        with contextlib.suppress(ConnectionError):  # it has ended; `_wait_for` says how
            self.pipe.send(task)
        return self

    def take(self, describe):
        """The oldest answer that was not taken yet: a list of arrays or an exception."""
        try:
            answer = self.pipe.recv()
            if isinstance(answer, Exception):
                return answer
            return (_receive_memory if self.shared else _receive_bytes)(self.pipe, answer)
        except (EOFError, ConnectionError):
            return self.ended(describe)

    def ended(self, describe):
        """The error that says how this worker ended, and where."""
        self.process.join(1)
        code, advice = self.process.exitcode or 0, ""
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if code == -signal.SIGKILL:
            advice = "; the system may lack memory: try a smaller num_workers or prefetch_factor"
        return DataError(f"data worker {self.number} {how} {self.where(describe)}{advice}")

    def where(self, describe):
        sample = int(self.position[0])
        return "between two samples" if sample == NO_SAMPLE else f"at {describe(sample)}"


def _wait_for(worker, workers, timeout, describe):
    """Return when `worker` has an answer; raise DataError when it has none in time, or any worker has ended."""
    ready = connection.wait([worker.pipe, *(other.process.sentinel for other in workers)], timeout or None)
    if not ready:
        where = worker.where(describe)
        raise DataError(f"data worker {worker.number} hangs {where}: no batch in {timeout:g} s (timeout)")
    for other in workers:
        if other.process.sentinel in ready:
            raise other.ended(describe)


def _stop(workers):
    """Kill the workers of this process; a process that inherits an unfinished iteration must not."""
    mine = [worker for worker in workers if worker.owner == os.getpid()]
    for worker in mine:
        worker.process.kill()
    for worker in mine:
        worker.process.join(1)
        worker.pipe.close()


@atexit.register
def _stop_all():
    """End the workers of iterations that nobody finished, or the program would not end.

    At its end multiprocessing sends them SIGTERM, which they leave to the main process, and waits for them.
    """
    _stop(list(_started))


@contextlib.contextmanager
def _interrupts_wait():
    """Ctrl-C inside takes effect at the end, so that no worker is started and then forgotten."""
    before = signal.getsignal(signal.SIGINT)
    if before is None or threading.current_thread() is not threading.main_thread():
        yield  # where nobody can raise KeyboardInterrupt
        return
    seen = []
    signal.signal(signal.SIGINT, lambda *_: seen.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if seen:
            signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def _nothing_inherited_is_collected():
    """Processes forked inside collect no garbage that they inherit: to destroy a tensor can wait for a lock.

    A worker may collect before any of its own code runs, so this comes before the fork.
    """
    frozen_before = gc.get_freeze_count()
    gc.freeze()
    try:
        yield
    finally:
        if not frozen_before:
            gc.unfreeze()


# In the worker.


def _work(pipe, not_ours, load, position, shared, parent):
    """Answer the tasks from `pipe` until the main process is gone."""
    try:
        for number in FOR_THE_MAIN_PROCESS:
            signal.signal(number, signal.SIG_IGN)
        for number in TAKEN_OVER:
            signal.signal(number, signal.SIG_DFL)
        for end in not_ours:
            end.close()

        def progress(sample):
            position[0] = sample
            if os.getppid() != parent:
                os._exit(1)

        send = _send_memory if shared else _send_bytes
        while True:
            while not pipe.poll(1):
                progress(NO_SAMPLE)
            _answer(pipe.recv(), pipe, load, progress, send)
    except (EOFError, ConnectionError):
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)  # what would be cleaned up belongs to the main process


def _answer(task, pipe, load, progress, send):
    try:
        arrays = [np.ascontiguousarray(array) for array in load(task, progress)]
    except Exception as error:
        pipe.send(error)
    else:
        send(pipe, arrays)


# An answer is a list of (dtype, shape), followed by the arrays.


def _layout(arrays):
    return [(array.dtype.str, array.shape) for array in arrays]


def _send_memory(pipe, arrays):
    with open(os.memfd_create("batch"), "wb") as file:
        for array in arrays:
            file.write(array)
        file.flush()
        pipe.send(_layout(arrays))
        reduction.send_handle(pipe, file.fileno(), None)


def _receive_memory(pipe, layout):
    with open(reduction.recv_handle(pipe), "rb") as file:
        memory, offset, arrays = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), 0, []
    for dtype, shape in layout:
        arrays.append(np.ndarray(shape, dtype, memory, offset))
        offset += arrays[-1].nbytes
    return arrays


def _send_bytes(pipe, arrays):
    pipe.send(_layout(arrays))
    for array in arrays:
        pipe.send_bytes(memoryview(array).cast("B"))  # as bytes, or Python 3.11 makes a copy


def _receive_bytes(pipe, layout):
    arrays = [np.empty(shape, dtype) for dtype, shape in layout]
    for array in arrays:
        pipe.recv_bytes_into(memoryview(array).cast("B"))
    return arrays
