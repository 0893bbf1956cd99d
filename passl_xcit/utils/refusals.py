"""The two ways in which a file can be wrong, in the words of every reader."""

from passl_xcit.utils.errors import CheckpointError

PLAIN = "only plain arrays, numbers and text are read; if you trust it, save those alone"


def damaged(name, reason):
    """The error for a file that breaks the rules of its own format."""
    return CheckpointError(f"{name}: {reason}; the file is damaged: copy or download it again")


def unwanted(name, reason, hint=PLAIN):
    """The error for a file that may be whole, but asks for more than plain data."""
    return CheckpointError(f"{name}: {reason}; {hint}")


def short(text):
    """`text` from a file, fit for one line of an error message."""
    text = ascii(text)
    return text if len(text) <= 80 else text[:80] + "..."
