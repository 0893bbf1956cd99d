"""tools/export.py on the demo weights."""

import json
from pathlib import Path

import numpy as np
import pytest

from passl_xcit.datasets.imagenet import open_image
from passl_xcit.engine.predictor import Predictor
from passl_xcit.engine.runtimes import PaddleInference
from passl_xcit.utils.errors import ConfigError
from tools.export import main

ROOT = Path(__file__).parents[2]
WEIGHTS = str(ROOT / "weights" / "xcit_demo_p4_fashion_mnist.pdparams")


@pytest.mark.slow
def test_the_demos_program_gives_the_predictors_probabilities(tmp_path, capsys):
    main([WEIGHTS, "--output_dir", str(tmp_path / "out"), "--softmax"])
    output = capsys.readouterr().out
    assert "onednn: differs from the model by" in output and f"written to {tmp_path / 'out'}" in output
    sidecar = json.loads((tmp_path / "out" / "export.json").read_text(encoding="utf-8"))
    predictor, run = Predictor(WEIGHTS, topk=10), PaddleInference(tmp_path / "out")
    assert sidecar["preprocess"] == predictor.preprocess.to_dict() and sidecar["class_names"] == predictor.class_names
    paths = sorted((ROOT / "docs" / "images" / "clothes").glob("*.png"))
    for path, prediction in zip(paths, predictor.predict(map(str, paths))):
        found = run(predictor.preprocess(open_image(path))[None])[0]
        expected = {guess.index: guess.probability for guess in prediction.top}
        np.testing.assert_allclose(found, [expected[index] for index in range(10)], atol=1e-5)


@pytest.mark.parametrize("formats", ["tensorrt", "", "paddle,onnx,x"])
def test_an_unknown_format_is_refused(formats, tmp_path):
    with pytest.raises(ConfigError, match=f"--format {formats}: expected paddle, onnx, or both with a comma between"):
        main([WEIGHTS, "--output_dir", str(tmp_path / "out"), "--format", formats])
    assert not (tmp_path / "out").exists()
