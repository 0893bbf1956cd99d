"""Lists of classes: what a line may be, and that the other logits do not count."""

import hashlib

import numpy as np
import paddle
import pytest
from tiny_run import tiny_config, tiny_run, write_images

from passl_xcit.engine import builder
from passl_xcit.engine.class_list import WNIDS, SomeClasses, read_class_list
from passl_xcit.engine.evaluation import EvaluationOptions
from passl_xcit.utils.errors import ConfigError, DataError
from passl_xcit.utils.logger import setup_logger


def written(tmp_path, text):
    path = tmp_path / "list.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


class TestALine:
    @pytest.mark.parametrize(
        ("text", "names", "indices"),
        [
            ("6\n11\n13\n", None, (6, 11, 13)),
            ("\ufeff 2 \r\n\r\n0\r\n", ["a", "b", "c"] * 7, (2, 0)),
            ("cat\nhouse mouse\n", ["dog", "house mouse", "cat"], (2, 1)),
            ("1\ncat", ["dog", "house mouse", "cat"], (1, 2)),
            ("1\n", ["0", "2", "1"], (1,)),  # digits are a number
        ],
    )
    def test_is_a_number_or_a_name(self, text, names, indices, tmp_path):
        found = read_class_list(written(tmp_path, text), 1000 if names is None else len(names), names)
        assert found.indices == indices

    def test_may_be_a_wordnet_number_where_a_model_has_imagenets_classes(self, tmp_path):
        """Stingray and tabby cat; 6 and 281 are timm's numbers for them."""
        path = written(tmp_path, "n01498041\nn02123045\n")
        found = read_class_list(path, 1000)
        assert (found.indices, found.names) == ((6, 281), ("n01498041", "n02123045"))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "lists no class: expected a number or a name a line"),
            ("\n \n", "lists no class"),
            ("0\n\n3\n", "line 3: '3': expected a number from 0 to 2, or a class's name such as dog"),
            ("-1\n", "line 1: '-1': expected a number from 0 to 2"),
            ("1.0\n", "line 1: '1.0': expected a number"),
            ("99999999999999999999\n", "line 1: '9+': expected a number"),
            ("²\n", r"line 1: '\\xb2': expected a number"),
            ("0\nfox\n", "line 2: 'fox': expected a number"),
            ("0\ncat\n2\n", "line 3: class 2 is there already, in line 2"),
            (b"\xff\xfe\x00", "cannot be read: it is no text"),
            ("x" * 5000, "line 1: 'x{79}...: expected"),
        ],
    )
    def test_that_is_wrong_is_refused(self, text, message, tmp_path):
        path = written(tmp_path, text)
        with pytest.raises(ConfigError, match=f"^--class_list {path}[:,] .*{message}") as error:
            read_class_list(path, 3, ["dog", "mouse", "cat"])
        assert "\n" not in str(error.value)

    def test_of_names_needs_a_model_that_knows_them(self, tmp_path):
        with pytest.raises(ConfigError, match="line 1: 'n01498041': expected a number from 0 to 9$"):
            read_class_list(written(tmp_path, "n01498041\n"), 10)

    @pytest.mark.parametrize(("name", "reason"), [("nothing.txt", "No such file"), ("", "Is a directory")])
    def test_of_no_file_is_refused(self, name, reason, tmp_path):
        with pytest.raises(ConfigError, match=f"cannot be read: {reason}"):
            read_class_list(tmp_path / name, 3)


def test_imagenets_wordnet_numbers_are_all_there_in_order():
    """The digest is that of timm's imagenet_synsets.txt without its last line break."""
    wnids = WNIDS.read_text().split()
    assert len(set(wnids)) == 1000 and wnids == sorted(wnids)
    digest = "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"
    assert hashlib.sha256("\n".join(wnids).encode()).hexdigest() == digest


@pytest.fixture
def seven(tmp_path):
    """(config, a model of 7 classes that tells images apart); the data has classes 1, 4 and 6 of them."""
    setup_logger()
    for split in ("train", "val"):
        write_images(tmp_path / split, 3, classes=7)
    for label in (0, 2, 3, 5):
        for path in (tmp_path / "val" / f"class{label}").iterdir():
            path.unlink()
        (tmp_path / "val" / f"class{label}").rmdir()
    cfg = tiny_config(tmp_path, "model.head.num_classes=7")
    model = builder.build_model(cfg)
    paddle.seed(1)
    for parameter in model.parameters():
        parameter.set_value(parameter + 0.3 * paddle.rand(parameter.shape))
    model.eval()
    return cfg, model


def restricted(model, tmp_path, text="1\n4\n6\n"):
    return SomeClasses(model, read_class_list(written(tmp_path, text), 7, model.class_names))


def test_logits_are_those_of_the_listed_classes_in_the_lists_order(seven, tmp_path):
    images = paddle.rand([2, 3, 8, 8])
    whole = seven[1](images).numpy()
    assert (restricted(seven[1], tmp_path, "6\n1\n4\n")(images).numpy() == whole[:, [6, 1, 4]]).all()


def test_the_accuracy_is_that_among_the_listed_classes(seven, tmp_path):
    """Counted from the whole model's logits, the columns of other classes taken out."""
    cfg, model = seven
    part = restricted(model, tmp_path)
    part.eval()
    evaluator = builder.build_evaluator(cfg, part)
    metrics = evaluator.evaluate()
    right = 0
    for images, targets in evaluator.loader:
        among = model(images).numpy()[:, [1, 4, 6]]
        right += int((among.argmax(axis=1) == targets.numpy()).sum())
    assert metrics == {"acc1": 100.0 * right / 9, "acc5": 100.0}
    assert part.training is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\n4\n", "3 classes, but --class_list .*/list.txt lists 2: expected a folder for each listed class"),
        ("0\n1\n4\n6\n", "3 classes, but --class_list .*/list.txt lists 4"),
    ],
)
def test_data_that_has_other_classes_is_refused(text, message, seven, tmp_path):
    cfg, model = seven
    with pytest.raises(DataError, match=message):
        builder.build_evaluator(cfg, restricted(model, tmp_path, text))


def test_the_same_classes_in_another_order_are_refused(seven, tmp_path):
    cfg, model = seven
    model.class_names = [f"class{label}" for label in range(7)]
    with pytest.raises(
        DataError, match="list.txt, line 3: lists 'class6' where .*/val has 'class4': expected the classes"
    ):
        builder.build_evaluator(cfg, restricted(model, tmp_path, "class1\n\nclass6\nclass4\n"))


def test_as_many_other_classes_are_refused(seven, tmp_path):
    cfg, model = seven
    model.class_names = [f"class{label}" for label in range(7)]
    with pytest.raises(DataError, match="list.txt, line 2: lists 'class5' where .*/val has 'class4': expected the cl"):
        builder.build_evaluator(cfg, restricted(model, tmp_path, "class1\nclass5\nclass6\n"))


def test_classes_in_other_words_are_taken_in_the_lists_order_which_a_line_says(seven, tmp_path, capsys):
    cfg, model = seven
    model.class_names = list("abcdefg")
    setup_logger()
    builder.build_evaluator(cfg, restricted(model, tmp_path, "b\ne\ng\n"))
    assert "the folder 'class1' is taken to be 'b', and so on in this order" in capsys.readouterr().out


def test_labels_of_a_list_file_must_be_numbers_of_listed_classes(seven, tmp_path):
    cfg, model = seven
    (tmp_path / "names.txt").write_text("class1/0.png 0\nclass4/0.png 3\n")
    cfg = tiny_config(tmp_path, "model.head.num_classes=7", f"dataloader.val.dataset.list_file={tmp_path}/names.txt")
    with pytest.raises(DataError, match="names.txt: 4 classes, but --class_list .* lists 3"):
        builder.build_evaluator(cfg, restricted(model, tmp_path))


def test_the_log_says_how_many_classes_count(tmp_path, capsys):
    tiny_run(tmp_path, "epochs=1")
    path = written(tmp_path, "0\n2\n")
    for image in (tmp_path / "val" / "class1").iterdir():
        image.unlink()
    (tmp_path / "val" / "class1").rmdir()
    found = tiny_run(
        tmp_path,
        load=tmp_path / "out/latest.pdparams",
        evaluate_only=True,
        evaluation=EvaluationOptions(None, None, path),
    )
    assert f"{path}: 2 of the model's 3 classes count, no others" in capsys.readouterr().out
    assert found["acc5"] == 100 and np.isfinite(found["acc1"])
