"""The script of the workers of our own contenders, see `ours`."""

from passl_xcit.engine.benchmark.protocol import serve
from passl_xcit.utils.startup import prepare_paddle

prepare_paddle()

from passl_xcit.engine.benchmark.ours import build  # noqa: E402

if __name__ == "__main__":
    serve(build)
