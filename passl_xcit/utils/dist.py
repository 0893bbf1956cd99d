"""Rank, world size, and reductions that do nothing on one process."""

import contextlib
import os

import paddle
import paddle.distributed as dist

from passl_xcit.utils.errors import TrainingError


def launched_processes():
    """How many processes `paddle.distributed.launch` started together with this one (1 without it)."""
    return int(os.environ.get("PADDLE_TRAINERS_NUM", "1"))


def is_launched():
    """Whether `paddle.distributed.launch` started this process."""
    return "PADDLE_LOCAL_SIZE" in os.environ


def init_parallel():
    """Join the other processes, if there are any; call once, after the device is chosen."""
    if launched_processes() > 1:
        if paddle.get_device() == "cpu":
            os.environ["PADDLE_DISTRI_BACKEND"] = "gloo"  # or Paddle goes to the device of a plugin it has found
        dist.init_parallel_env()


def rank():
    return dist.get_rank()


def world_size():
    return dist.get_world_size()


def is_main():
    return rank() == 0


def sum_over_processes(numbers):
    """Element-wise sum of a list of Python numbers over all processes."""
    if world_size() == 1:
        return list(numbers)
    total = paddle.to_tensor(numbers, dtype="float64" if paddle.get_device() == "cpu" else "float32")
    with _a_lost_process_named():
        dist.all_reduce(total)
    return total.tolist()


def gathered(tensor):
    """The tensors of this shape and type that all processes have, in their order."""
    if world_size() == 1:
        return [tensor]
    tensors = []
    with _a_lost_process_named():
        dist.all_gather(tensors, tensor)
    return tensors


def copy_from_first(tensors):
    """Give `tensors` the values they have in the first process."""
    if world_size() > 1:
        with _a_lost_process_named():
            for tensor in tensors:
                dist.broadcast(tensor, src=0)


def wait_for_all():
    """Return when every process has come here."""
    if world_size() > 1:
        with _a_lost_process_named():
            dist.barrier()


@contextlib.contextmanager
def _a_lost_process_named():
    """One line in place of a traceback; gloo, which connects processes on CPUs, waits 30 seconds for the others."""
    try:
        yield
    except RuntimeError as error:
        if "gloo" not in str(error):
            raise
        raise TrainingError(
            "another process of this run has ended, or did not come within 30 seconds; what became of it stands in its "
            "log (workerlog.N in the folder --log_dir of paddle.distributed.launch)"
        ) from error
