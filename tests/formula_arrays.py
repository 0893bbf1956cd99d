"""Arrays given by a formula, whose values every type of weight files holds exactly, bfloat16 too."""

import numpy as np


def formula(shape, code="f4", start=0):
    """Multiples of 1/64 below 2 in size; whole numbers from -125 to 125 (0 to 250 if unsigned) and bools by turns."""
    steps = (np.arange(np.prod(shape, dtype=int)).reshape(shape) * 7 + start) % 251
    if code[0] == "f":
        return np.asarray((steps - 125) / 64, code)
    return np.asarray(steps % 2 == 0 if code == "b1" else steps - 125 * (code[0] == "i"), code)
