"""The names that `import passl_xcit` offers, and what using them imports."""

import os
import subprocess
import sys

import pytest

import passl_xcit


@pytest.mark.parametrize("name", passl_xcit.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert getattr(passl_xcit, name).__doc__
    assert name in dir(passl_xcit)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'passl_xcit' has no attribute 'creat_model'"):
        passl_xcit.creat_model  # noqa: B018


def run(code):
    environment = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "PYTHONPATH")}
    environment["PYTHONPATH"] = os.path.dirname(os.path.dirname(passl_xcit.__file__))
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100)
    return done.stdout, done.stderr


def test_reading_a_file_imports_neither_paddle_nor_torch():
    code = "import sys, passl_xcit; passl_xcit.read_checkpoint, passl_xcit.CheckpointError; print(*sys.modules)"
    assert not {"paddle", "torch", "mindspore", "pickle5"} & set(run(code)[0].split())


def test_the_processor_is_prepared_before_paddle_is_imported():
    code = "import os, passl_xcit; passl_xcit.create_model; print(os.environ['OMP_NUM_THREADS'])"
    output, errors = run(code)
    assert int(output) == len(os.sched_getaffinity(0)) and errors == ""
