"""tools/visualize.py on the demo weights."""

from pathlib import Path

import pytest
from PIL import Image

from passl_xcit.utils.errors import ConfigError, DataError
from tools.visualize import main

ROOT = Path(__file__).parents[2]
WEIGHTS = str(ROOT / "weights" / "xcit_demo_p4_fashion_mnist.pdparams")
IMAGE = sorted((ROOT / "docs" / "images" / "clothes").glob("*.png"))[0]


@pytest.mark.slow
def test_three_pages_are_drawn_and_named(tmp_path, capsys):
    main([str(IMAGE), "--weights", WEIGHTS, "--output_dir", str(tmp_path / "pages"), "--short_side", "56"])
    pages = [Path(line) for line in capsys.readouterr().out.splitlines()]
    names = [f"{IMAGE.stem}_{page}.png" for page in ("class_attention", "channel_attention", "features")]
    assert [page.name for page in pages] == names
    assert all(Image.open(page).width > 300 for page in pages)


@pytest.mark.parametrize("side", ["0", "-3"])
def test_a_side_without_pixels_is_refused(side, tmp_path):
    with pytest.raises(ConfigError, match=f"--short_side {side}: expected a number of pixels above 0"):
        main([str(IMAGE), "--weights", WEIGHTS, "--output_dir", str(tmp_path), "--short_side", side])


def test_images_whose_pages_would_have_the_same_names_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"a/x.png and b/x.jpg: their pages would have the same names, x_\*.png"):
        main(["a/x.png", "b/x.jpg", "--weights", WEIGHTS, "--output_dir", str(tmp_path)])


def test_an_image_that_is_none_is_named(tmp_path):
    (tmp_path / "broken.png").write_text("no image")
    with pytest.raises(DataError, match="broken.png"):
        main([str(tmp_path / "broken.png"), "--weights", WEIGHTS, "--output_dir", str(tmp_path / "pages")])
