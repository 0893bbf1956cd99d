"""XCiT on PaddlePaddle, with PASSL's conventions.

Importing the package imports nothing else, so that `passl_xcit.utils.cpu.prepare_cpu` can come before Paddle.
"""

__version__ = "0.1.0"
