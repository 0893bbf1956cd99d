"""The project's own configs and demo weights are found in every folder, and nothing there is hidden by them."""

import pytest

from passl_xcit.modeling.checkpoint_formats import read_file
from passl_xcit.utils.config import load_config
from passl_xcit.utils.errors import CheckpointError, ConfigError
from passl_xcit.utils.shipped import ROOT, shipped

CONFIG = "configs/demo/xcit_demo_p4_fashion_mnist.yaml"
WEIGHTS = "weights/xcit_demo_p4_fashion_mnist.pdparams"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("path", [CONFIG, WEIGHTS])
def test_a_file_that_is_not_here_is_ours_and_one_that_is_here_is_not(path, elsewhere):
    assert shipped(path) == ROOT / path and shipped(path).is_file()
    here = elsewhere / path
    here.parent.mkdir(parents=True)
    here.symlink_to("nowhere")
    assert shipped(path).resolve() == here.parent.resolve() / "nowhere"
    here.unlink()
    here.write_text("mine")
    assert shipped(path).read_text() == "mine"


@pytest.mark.parametrize("path", ["configs/../setup.py", "tools/train.py", "configs/mine.yaml", "README.md", "", "."])
def test_nothing_else_is_looked_for(path, elsewhere):
    assert shipped(path, elsewhere) == elsewhere / path


def test_configs_are_read_from_everywhere_and_are_bases_of_others(elsewhere):
    assert load_config(CONFIG)["epochs"] == 50
    (elsewhere / "mine").mkdir()
    (elsewhere / "mine" / "mine.yaml").write_text(f"_base_: {CONFIG}\nepochs: 3")
    found = load_config("mine/mine.yaml")
    assert found["epochs"] == 3 and found["model"]["head"]["num_classes"] == 10
    with pytest.raises(ConfigError, match="did you mean .*/configs/demo/xcit_demo_p4_fashion"):
        load_config("configs/demo/xcit_demo_fashion_mnist.yaml")


def test_weights_are_read_from_everywhere():
    assert read_file(WEIGHTS)["class_names"][9] == "Ankle boot"
    with pytest.raises(CheckpointError, match="^weights/mine.pdparams: there is no such file"):
        read_file("weights/mine.pdparams")
