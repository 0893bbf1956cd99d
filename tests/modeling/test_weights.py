"""Weights are loaded all or not at all, and what does not fit is named."""

import hashlib

import numpy as np
import paddle
import pytest

from passl_xcit.modeling.checkpoint_formats import write_file
from passl_xcit.modeling.state_dict import state_dict_of
from passl_xcit.modeling.weights import LINES_SHOWN, explain, load_weights, set_weights
from passl_xcit.utils.errors import CheckpointError


def arrays_of(model):
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


def digest(model):
    sha = hashlib.sha256()
    for name, array in arrays_of(model).items():
        sha.update(name.encode() + array.tobytes())
    return sha.hexdigest()


def refusal(model, arrays):
    before = digest(model)
    with pytest.raises(CheckpointError) as caught:
        set_weights(model, arrays, "w.pdparams")
    assert digest(model) == before
    first, *lines = str(caught.value).splitlines()
    assert first.startswith("w.pdparams does not fit the model, which is left as it was")
    return lines


def test_a_model_takes_the_weights_of_its_twin(tiny_model, tmp_path):
    model, twin = tiny_model(seed=1), tiny_model(seed=2)
    assert digest(model) != digest(twin)
    write_file(tmp_path / "w.pdparams", arrays_of(twin))
    load_weights(model, tmp_path / "w.pdparams")
    assert digest(model) == digest(twin)


def test_batchnorms_statistics_are_weights(tiny_model, tmp_path):
    model, twin = tiny_model(seed=1), tiny_model(seed=1)
    twin.train_iter(paddle.rand([4, 3, 8, 8]), paddle.to_tensor([0, 1, 2, 0]))
    assert digest(model) != digest(twin)
    set_weights(model, arrays_of(twin), "w")
    assert digest(model) == digest(twin)


def test_the_weights_of_a_checkpoint_are_its_state_dict(tiny_model, tmp_path):
    model, twin = tiny_model(seed=1), tiny_model(seed=2)
    write_file(tmp_path / "epoch_3.pdparams", {"epoch": 3, "state_dict": arrays_of(twin), "lr_scheduler": {"x": 1}})
    load_weights(model, tmp_path / "epoch_3.pdparams")
    assert digest(model) == digest(twin)


def test_what_paddle_saves_is_loaded(tiny_model, tmp_path):
    model, twin = tiny_model(seed=1), tiny_model(seed=2)
    paddle.save(twin.state_dict(), str(tmp_path / "w.pdparams"))
    load_weights(model, tmp_path / "w.pdparams")
    assert digest(model) == digest(twin)


def to_bfloat16(array):
    """The upper half of each float32, as Paddle stores it."""
    return (array.astype("float32").view("uint32") >> 16).astype("uint16")


@pytest.mark.parametrize(
    ("cast", "tolerance"),
    [
        (lambda array: array.astype("float64"), 0),
        (lambda array: array.astype("float16"), 1e-3),
        (to_bfloat16, 1e-2),
        (np.asfortranarray, 0),
        (lambda array: array[::-1].copy()[::-1], 0),
    ],
    ids=["float64", "float16", "bfloat16", "column by column", "strided"],
)
def test_arrays_of_other_types_and_layouts_become_the_models(tiny_model, cast, tolerance):
    model, twin = tiny_model(seed=1), tiny_model(seed=2)
    expected = arrays_of(twin)
    set_weights(model, state_dict_of({name: cast(array) for name, array in expected.items()}, "w"), "w")
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == paddle.float32
        np.testing.assert_allclose(tensor.numpy(), expected[name], rtol=tolerance, atol=tolerance / 100)


def test_a_loaded_model_keeps_nothing_of_the_arrays(tiny_model):
    model, arrays = tiny_model(seed=1), arrays_of(tiny_model(seed=2))
    set_weights(model, arrays, "w")
    before = digest(model)
    for array in arrays.values():
        array[...] = 0
    assert digest(model) == before


def test_optimizers_still_hold_the_loaded_parameters(tiny_model):
    model = tiny_model(seed=1)
    optimizer = paddle.optimizer.SGD(1.0, parameters=model.parameters())
    set_weights(model, arrays_of(tiny_model(seed=2)), "w")
    before = model.head.fc_cls.weight.numpy().copy()
    model.head.fc_cls.weight.sum().backward()
    optimizer.step()
    np.testing.assert_allclose(model.head.fc_cls.weight.numpy(), before - 1, rtol=1e-6)


def test_a_name_that_the_file_lacks_is_refused(tiny_model):
    model = tiny_model()
    arrays = arrays_of(model)
    del arrays["backbone.patch_embed.proj.0.1._mean"]
    expected = "  - backbone.patch_embed.proj.0.1._mean [8]: the model has it, the file has not"
    assert refusal(model, arrays) == [expected]


def test_a_name_that_the_model_lacks_is_refused(tiny_model):
    model = tiny_model()
    arrays = {**arrays_of(model), "head.extra": np.zeros((2, 3))}
    assert refusal(model, arrays) == ["  + head.extra [2, 3]: the file has it, the model has not"]


def test_another_shape_is_refused(tiny_model):
    lines = refusal(tiny_model(num_classes=3), {**arrays_of(tiny_model(num_classes=5))})
    assert lines == ["  ~ head.fc_cls.weight: file [16, 5], model [16, 3]", "  ~ head.fc_cls.bias: file [5], model [3]"]


def test_another_number_of_classes_is_named(tiny_model):
    with pytest.raises(
        CheckpointError,
        match=r"left as it was \(it has 5 classes, the model 3: set num_classes",
    ):
        set_weights(tiny_model(num_classes=3), arrays_of(tiny_model(num_classes=5)), "w")


def test_another_architecture_is_named(tiny_model):
    expected = r"\(this looks like an XCiT of patch_size 4, embed_dim 16, depth 1, num_heads 2, the model is an XCiT of"
    with pytest.raises(CheckpointError, match=expected):
        set_weights(tiny_model(depth=2), arrays_of(tiny_model(depth=1)), "w")


def test_values_beyond_the_models_type_are_refused(tiny_model):
    arrays = {name: array.astype("float64") for name, array in arrays_of(tiny_model()).items()}
    arrays["head.fc_cls.bias"][0] = 1e39
    model = tiny_model()
    before = digest(model)
    with pytest.raises(CheckpointError, match=r"^w: head\.fc_cls\.bias has values that float32 cannot hold$"):
        set_weights(model, arrays, "w")
    assert digest(model) == before


def test_a_transposed_matrix_is_refused_although_it_has_as_many_elements(tiny_model):
    model = tiny_model()
    arrays = arrays_of(model)
    arrays["head.fc_cls.weight"] = arrays["head.fc_cls.weight"].T
    assert refusal(model, arrays) == ["  ~ head.fc_cls.weight: file [3, 16], model [16, 3]"]


def test_many_differences_are_counted_and_the_first_ones_shown(tiny_model):
    model = tiny_model()
    lines = refusal(model, {f"teacher.{name}": array for name, array in arrays_of(model).items()})
    total = len(model.state_dict())
    rest = f"    ... and {total - LINES_SHOWN} more of this kind"
    assert len(lines) == 2 * (LINES_SHOWN + 1)
    assert lines[LINES_SHOWN] == lines[-1] == rest
    assert lines[0].startswith("  - backbone.") and lines[LINES_SHOWN + 1].startswith("  + teacher.backbone.")


def test_another_architecture_is_refused(tiny_model):
    lines = refusal(tiny_model(depth=2), arrays_of(tiny_model(depth=1)))
    assert lines[0].startswith("  - backbone.blocks.1.") and not any(line[2] in "+~" for line in lines)


def test_what_is_not_finite_is_refused_before_anything_is_changed(tiny_model, tmp_path):
    model, arrays = tiny_model(seed=1), arrays_of(tiny_model(seed=2))
    arrays["head.fc_cls.bias"][1] = np.nan
    write_file(tmp_path / "w.pdparams", arrays)
    before = digest(model)
    with pytest.raises(CheckpointError, match="w.pdparams: holds non-finite values in 'head.fc_cls.bias'"):
        load_weights(model, tmp_path / "w.pdparams")
    assert digest(model) == before


@pytest.mark.parametrize(
    ("have", "want", "lines"),
    [
        ({"a": [1]}, {"a": [1]}, []),
        ({}, {}, []),
        ({"a": []}, {"a": [1]}, ["  ~ a: file [], model [1]"]),
        (
            {"b": [2]},
            {"a": [1]},
            ["  - a [1]: the model has it, the file has not", "  + b [2]: the file has it, the m"],
        ),
    ],
)
def test_differences_in_words(have, want, lines):
    found = explain(have, want)
    assert len(found) == len(lines)
    assert all(ours.startswith(theirs) for ours, theirs in zip(found, lines))
