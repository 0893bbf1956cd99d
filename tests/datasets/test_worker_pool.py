"""Worker processes: what they compute, how their end is told, and that none of them outlives its use."""

import contextlib
import errno
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import paddle
import pytest

from passl_xcit.datasets.worker_pool import NO_SAMPLE, in_workers
from passl_xcit.utils.errors import DataError

ROOT = Path(__file__).parents[2]
BOTH_WAYS = pytest.mark.parametrize("use_shared_memory", [True, False])


def process_number(task, progress):
    return [np.array([os.getpid()])]


def act_at(chosen, action):
    """A load function that reads samples 10 * task to 10 * task + 2, and does `action` at sample `chosen`."""

    def load(task, progress):
        for sample in range(10 * task, 10 * task + 3):
            progress(sample)
            if sample == chosen:
                action()
        progress(NO_SAMPLE)
        return process_number(task, progress)

    return load


def is_there(process):
    """Whether the system still has this process; one that nobody has collected yet counts as gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def eventually(condition, seconds):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


@pytest.fixture(autouse=True)
def no_worker_stays():
    yield
    gc.collect()
    assert multiprocessing.active_children() == []


# Results.


@BOTH_WAYS
@pytest.mark.parametrize("num_workers, ahead, tasks", [(1, 1, 5), (2, 1, 5), (2, 3, 20), (3, 2, 2), (2, 2, 0)])
def test_results_come_in_the_order_of_the_tasks(num_workers, ahead, tasks, use_shared_memory):
    def load(task, progress):
        time.sleep(0.005 * (task % 3))
        return [np.array([task])]

    results = in_workers(load, range(tasks), num_workers, ahead, use_shared_memory=use_shared_memory)
    assert [int(result[0]) for (result,) in results] == list(range(tasks))


@BOTH_WAYS
def test_arrays_of_every_type_and_layout_arrive(use_shared_memory):
    wide = np.arange(3_000_000, dtype="float32").reshape(3, 1000, 1000)
    sent = [np.arange(5, dtype="int64"), wide, wide.T[::7], np.array([[True]]), np.float64(2.5) * np.ones((2, 1, 3))]
    ((*arrived,),) = in_workers(lambda task, progress: sent, [0], 1, use_shared_memory=use_shared_memory)
    for ours, theirs in zip(arrived, sent):
        np.testing.assert_array_equal(ours, theirs)
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)


def file_systems():
    """{first address: (device, name)} of what this process has mapped."""
    lines = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    return {int(line[0].split("-")[0], 16): (line[3], line[5] if len(line) > 5 else "") for line in lines}


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no memory files here")
def test_what_lies_in_shared_memory_is_no_part_of_dev_shm_whose_size_is_limited_in_containers():
    ((array,),) = in_workers(lambda task, progress: [np.ones(300_000)], [0], 1)
    device, name = file_systems()[array.ctypes.data]
    assert name == "/memfd:batch (deleted)"
    limited = os.stat("/dev/shm").st_dev
    assert device != f"{os.major(limited):02x}:{os.minor(limited):02x}"


def test_a_system_without_memory_files_uses_the_pipe(monkeypatch):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    assert len(list(in_workers(process_number, range(4), 2))) == 4


def test_all_workers_work_and_none_is_this_process():
    processes = {int(result[0]) for (result,) in in_workers(process_number, range(6), 3)}
    assert len(processes) == 3 and os.getpid() not in processes


def test_a_worker_prepares_as_many_results_ahead_as_it_is_told(tmp_path):
    def load(task, progress):
        (tmp_path / str(task)).touch()
        return process_number(task, progress)

    results = in_workers(load, range(20), 1, ahead=3)
    next(results)
    assert eventually(lambda: len(list(tmp_path.iterdir())) == 4, 2)  # the one taken, and three
    time.sleep(0.1)
    assert len(list(tmp_path.iterdir())) == 4


@BOTH_WAYS
def test_long_tasks_and_long_results_do_not_wait_for_each_other(use_shared_memory):
    tasks = [b"x" * 1_000_000] * 6
    results = in_workers(
        lambda task, progress: [np.frombuffer(task, "uint8")],
        tasks,
        1,
        3,
        timeout=20,
        use_shared_memory=use_shared_memory,
    )
    assert [result.size for (result,) in results] == [1_000_000] * 6


# Errors, and workers that end or hang.


def test_an_exception_is_raised_at_its_place_in_the_order():
    def load(task, progress):
        if task == 3:
            raise DataError("task 3 cannot be done")
        return process_number(task, progress)

    results = in_workers(load, range(6), 2)
    assert len([next(results) for _ in range(3)]) == 3
    with pytest.raises(DataError, match="^task 3 cannot be done$"):
        next(results)


ENDS = {
    "was killed by SIGKILL at image 21; the system may lack memory: try a smaller num_workers or prefetch_factor": (
        lambda: os.kill(os.getpid(), signal.SIGKILL)
    ),
    "was killed by SIGSEGV at image 21": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "was killed by SIGABRT at image 21": lambda: os.kill(os.getpid(), signal.SIGABRT),
    "ended with exit code 0 at image 21": lambda: os._exit(0),
    "ended with exit code 7 at image 21": lambda: os._exit(7),
}


@BOTH_WAYS
@pytest.mark.parametrize("how", ENDS)
def test_a_worker_that_ends_is_named_with_how_and_where(how, use_shared_memory):
    load, start = act_at(21, ENDS[how]), time.monotonic()
    with pytest.raises(DataError) as caught:
        list(in_workers(load, range(9), 2, use_shared_memory=use_shared_memory, describe="image {}".format))
    assert str(caught.value) == f"data worker 0 {how}"
    assert time.monotonic() - start < 2


def test_the_end_of_a_worker_whose_turn_it_is_not_is_noticed_at_once():
    def load(task, progress):
        if task == 1:
            os._exit(3)
        time.sleep(30)

    start = time.monotonic()
    with pytest.raises(DataError, match="^data worker 1 ended with exit code 3 between two samples$"):
        list(in_workers(load, range(2), 2))
    assert time.monotonic() - start < 2


def test_an_end_while_nobody_waits_is_told_at_the_next_batch():
    results = in_workers(act_at(12, lambda: os._exit(3)), range(4), 1, ahead=2)
    next(results)
    time.sleep(0.3)
    with pytest.raises(DataError, match="^data worker 0 ended with exit code 3 at 12$"):
        list(results)


def test_a_signal_that_this_process_ignores_ends_a_worker():
    before = signal.signal(signal.SIGABRT, signal.SIG_IGN)
    try:
        with pytest.raises(DataError, match="killed by SIGABRT"):
            list(in_workers(act_at(1, lambda: os.kill(os.getpid(), signal.SIGABRT)), range(2), 1))
    finally:
        signal.signal(signal.SIGABRT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_job_ends_no_worker(number):
    load = act_at(1, lambda: os.kill(os.getpid(), number))
    assert len(list(in_workers(load, range(3), 1))) == 3


@BOTH_WAYS
def test_a_worker_that_hangs_is_named_with_its_place(use_shared_memory):
    results = in_workers(
        act_at(12, lambda: time.sleep(60)), range(4), 2, timeout=0.5, use_shared_memory=use_shared_memory
    )
    (process,) = next(results)
    start = time.monotonic()
    with pytest.raises(DataError) as caught:
        next(results)
    assert str(caught.value) == "data worker 1 hangs at 12: no batch in 0.5 s (timeout)"
    assert 0.4 < time.monotonic() - start < 2.5 and not is_there(process[0])


def test_slow_is_not_hanging_when_each_batch_is_in_time():
    def load(task, progress):
        time.sleep(0.2)
        return process_number(task, progress)

    assert len(list(in_workers(load, range(6), 1, timeout=0.9))) == 6


def test_a_process_that_cannot_be_started_is_a_users_error(monkeypatch):
    forks, fork = [], os.fork

    def fork_once():
        if forks:
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        forks.append(True)
        return fork()

    monkeypatch.setattr(os, "fork", fork_once)
    with pytest.raises(DataError) as caught:
        list(in_workers(process_number, range(4), 2))
    assert str(caught.value) == (
        "data worker 1 cannot start: Resource temporarily unavailable; try a smaller num_workers"
    )


# Ending.


@BOTH_WAYS
def test_leaving_the_loop_ends_the_workers(use_shared_memory):
    processes = []
    for (process,) in in_workers(process_number, range(99), 2, use_shared_memory=use_shared_memory):
        processes.append(int(process[0]))
        if len(processes) == 2:
            break
    assert eventually(lambda: not any(map(is_there, processes)), 1)
    assert multiprocessing.active_children() == []


def test_an_iteration_that_is_forgotten_ends_its_workers_when_it_is_collected():
    results = in_workers(process_number, range(99), 1)
    process = int(next(results)[0][0])
    assert is_there(process)
    cycle = [results]
    cycle.append(cycle)
    del results, cycle
    gc.collect()
    assert not is_there(process)


def test_a_process_that_inherits_an_iteration_does_not_end_its_workers():
    results = in_workers(process_number, range(20), 2)
    next(results)
    child = os.fork()
    if not child:
        results.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert len(list(results)) == 19


@pytest.fixture
def interrupted_by_forks():
    """Every fork of this process is followed by Ctrl-C, before the new process's number is known."""
    on = [True]
    os.register_at_fork(after_in_parent=lambda: on and os.kill(os.getpid(), signal.SIGINT))
    yield
    on.clear()


def test_ctrl_c_while_workers_start_is_not_lost_and_leaves_none(interrupted_by_forks):
    with pytest.raises(KeyboardInterrupt):
        list(in_workers(process_number, range(4), 2))
    assert multiprocessing.active_children() == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_workers_start_in_a_thread_too():
    seen = []
    thread = threading.Thread(target=lambda: seen.extend(in_workers(process_number, range(4), 2)))
    thread.start()
    thread.join(20)
    assert len(seen) == 4


PARENT = """
import os, sys, time
import numpy as np
from passl_xcit.datasets.worker_pool import in_workers

def load(task, progress):
    if sys.argv[1] == "busy" and task > 1:
        for sample in range(3000):
            progress(sample)
            time.sleep(0.01)
    return [np.full(300_000 if task > 1 else 1, os.getpid())]

try:
    for number, (process,) in enumerate(in_workers(load, range(99), 2, use_shared_memory=sys.argv[1] != "writing")):
        print(process[0], flush=True)
        if number == 1:
            time.sleep(30)
except KeyboardInterrupt:
    print("KeyboardInterrupt", flush=True)
    time.sleep(30)
"""


@pytest.fixture(params=["idle", "busy", "writing"])
def parent(request):
    """A process in the middle of an iteration, and its two workers' numbers."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-c", PARENT, request.param]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(arguments, env=environment, start_new_session=True, **pipes)
    try:
        yield process, [int(process.stdout.readline()) for _ in range(2)]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_ctrl_c_ends_the_workers_and_is_raised_in_the_main_process(parent):
    process, workers = parent
    assert all(map(is_there, workers))
    os.killpg(process.pid, signal.SIGINT)
    assert process.stdout.readline() == "KeyboardInterrupt\n"
    assert eventually(lambda: not any(map(is_there, workers)), 1)
    process.kill()
    assert process.communicate()[1] == ""  # no traceback of a worker's


def test_workers_notice_that_the_main_process_was_killed(parent):
    process, workers = parent
    process.kill()
    process.wait()
    assert eventually(lambda: not any(map(is_there, workers)), 5)


# What workers inherit.


@pytest.mark.slow
def test_workers_started_while_another_thread_uses_paddle_never_hang():
    stop = threading.Event()

    def allocate():
        while not stop.is_set():
            paddle.to_tensor(np.zeros(1000, "float32")) + 1

    thread = threading.Thread(target=allocate)
    thread.start()
    try:
        for _ in range(50):
            assert len(list(in_workers(process_number, range(4), 2, timeout=20))) == 4
    finally:
        stop.set()
        thread.join()


def test_a_program_ends_although_an_iteration_is_not_finished():
    code = (
        "import numpy as np\n"
        "from passl_xcit.datasets.worker_pool import in_workers\n"
        "results = in_workers(lambda task, progress: [np.array([task])], range(9), 2)\n"
        "print(next(results)[0][0])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.returncode) == ("0\n", 0), done.stderr
