"""What a user did wrong, as one line: the classes of every error that is not a bug of ours."""

import contextlib
import os
import sys


class UserError(Exception):
    """Something the user can mend; its text says what, where, what was expected and what to do."""

    exit_code = 1


class ConfigError(UserError):
    """A config file, an override or a command line that cannot be right."""

    exit_code = 2
    located = False  # whether the text already names the file

    def __init__(self, message, path=""):
        self.message, self.path = message, path
        super().__init__(f"{path}: {message}" if path else message)


class DataError(UserError):
    """A folder, list file or image that cannot be used."""


class CheckpointError(UserError):
    """A weight file or checkpoint that cannot be read, or that does not fit the model."""


class DeviceError(UserError):
    """A device that cannot do what is asked of it, such as hold a batch."""


class TrainingError(UserError):
    """A training that cannot go on, such as one whose loss is no longer a number."""


class TrainingStopped(Exception):
    """A training that a signal stopped, all saved; the exit code is the customary 128 + the signal's number."""

    def __init__(self, message, number):
        self.exit_code = 128 + number
        super().__init__(message)


def exit_with_one_line(main, argv=None):
    """Run `main(argv)`; what the user or the system did wrong becomes one line on stderr and a non-zero exit code.

    With PASSL_XCIT_DEBUG=1 the traceback is kept.
    """
    if sys.stdout is None:  # whoever closed it wants no output
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        code = main(argv)
        _flush_output()
        sys.exit(code)
    except BrokenPipeError:  # who read our output has gone, and nobody reads a message either
        sys.exit(141)
    except (UserError, OSError, MemoryError) as error:
        if os.environ.get("PASSL_XCIT_DEBUG"):
            raise
        print(f"error: {_in_one_line(error)}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))
    except TrainingStopped as stop:
        print(stop, file=sys.stderr)
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        give_up_unwritten(sys.stdout)


def _flush_output():
    try:
        sys.stdout.flush()
    except OSError as error:
        error.filename = "<stdout>"
        raise


def give_up_unwritten(stream):
    """Forget what a stream could not write. It would try again with every line, and at its end.

    What others write into the same file meanwhile is lost, too. A stream without a file keeps what it has.
    """
    if getattr(stream, "closed", False):
        return
    try:
        stream.flush()
    except OSError:
        with contextlib.suppress(OSError):
            _write_nowhere(stream)


def _write_nowhere(stream):
    number = stream.fileno()
    kept = os.dup(number)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), number)
        stream.flush()
    finally:
        os.dup2(kept, number)
        os.close(kept)


def _in_one_line(error):
    if isinstance(error, MemoryError):
        return "not enough memory: try a smaller batch, image or model"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)
