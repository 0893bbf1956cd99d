"""A student learns from a frozen teacher, which nothing outside the wrapper sees."""

import numpy as np
import paddle
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import tiny_dict, tiny_run

from passl_xcit.engine import builder, launch
from passl_xcit.losses import hard_distillation, mutual_kl, soft_distillation
from passl_xcit.modeling import factory
from passl_xcit.modeling.checkpoint_formats import read_file, write_file
from passl_xcit.modeling.distillation import DistillationWrapper
from passl_xcit.modeling.weights import load_weights
from passl_xcit.utils.config import load_config, parse_override
from passl_xcit.utils.errors import CheckpointError, ConfigError
from passl_xcit.utils.logger import setup_logger

# Losses, against their formulas in float64.


def logits_of(seed, batch=5, classes=7):
    return (3 * np.random.RandomState(seed).standard_normal((2, batch, classes))).astype("float32")


def softmax(logits):
    exponentials = np.exp(logits.astype("float64") - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def kl(p, q):
    """KL(p || q), mean over the batch."""
    return (p * (np.log(p) - np.log(q))).sum(axis=1).mean()


@given(st.integers(0, 2**31))
def test_mutual_kl_is_the_mean_of_both_divergences(seed):
    student, teacher = logits_of(seed)
    s, t = softmax(student), softmax(teacher)
    found = mutual_kl(paddle.to_tensor(student), paddle.to_tensor(teacher)).item()
    assert found == pytest.approx((kl(s, t) + kl(t, s)) / 2, rel=1e-4)


@given(st.integers(0, 2**31))
def test_mutual_kl_is_passls(seed):
    """target * log((target + 1e-12) / (x + 1e-12)) * C, half the mean over batch and classes of both directions."""
    student, teacher = logits_of(seed)
    s, t = softmax(student), softmax(teacher)
    both = sum(a * np.log((a + 1e-12) / (b + 1e-12)) * s.shape[1] for a, b in ((s, t), (t, s)))
    found = mutual_kl(paddle.to_tensor(student), paddle.to_tensor(teacher)).item()
    assert found == pytest.approx(0.5 * both.mean(), rel=1e-4)


@given(st.integers(0, 2**31), st.sampled_from([0.5, 1.0, 3.0]))
def test_soft_distillation_is_deits(seed, tau):
    student, teacher = logits_of(seed)
    s, t = softmax(student / tau), softmax(teacher / tau)
    expected = (t * (np.log(t) - np.log(s))).sum() * tau**2 / s.size
    found = soft_distillation(paddle.to_tensor(student), paddle.to_tensor(teacher), tau).item()
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-7)


@given(st.integers(0, 2**31))
def test_hard_distillation_is_deits(seed):
    student, teacher = logits_of(seed)
    expected = -np.log(softmax(student))[np.arange(5), teacher.argmax(axis=1)].mean()
    found = hard_distillation(paddle.to_tensor(student), paddle.to_tensor(teacher)).item()
    assert found == pytest.approx(expected, rel=1e-4)


# The wrapper.

REGNET = {"name": "RegNet", "w_a": 0.0, "w_0": 16, "w_m": 2.0, "d": 2, "group_w": 8, "bot_mul": 1.0, "se_on": True}


def model_node(folder, classes=3, **options):
    """PASSL's form: a list of single names, each with a model."""
    student = tiny_dict(folder)["model"]
    teacher = {
        "name": "Classification",
        "backbone": REGNET,
        "head": {"name": "ClasHead", "in_channels": 16, "num_classes": classes},
    }
    return {"name": "DistillationWrapper", "models": [{"Teacher": teacher}, {"Student": student}], **options}


def wrapper(folder, **options):
    paddle.seed(0)
    return factory.build(model_node(folder, **options))


def config(folder, *overrides, **options):
    data = tiny_dict(folder)
    data["model"] = model_node(folder, **options)
    path = folder / "dist.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def arrays_of(model):
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


IMAGES, TARGETS = paddle.randn([4, 3, 8, 8]), paddle.to_tensor([0, 1, 2, 0])


@pytest.mark.parametrize("kind", ["dml", "hard", "soft"])
def test_the_loss_is_the_weighted_sum_of_the_labels_and_the_teachers(kind, tmp_path):
    options = {"dml_loss_weight": 0.3, "head_loss_weight": 0.9} if kind == "dml" else {"alpha": 0.2, "tau": 2.0}
    model = wrapper(tmp_path, distillation_type=kind, **options)
    model.train()
    paddle.seed(3)
    outputs = model.train_iter(IMAGES, TARGETS)
    paddle.seed(3)
    logits, teacher = model.student(IMAGES), model.teacher(IMAGES)
    expected = {"dml": mutual_kl, "hard": hard_distillation, "soft": lambda s, t: soft_distillation(s, t, 2.0)}[kind]
    weight, head_weight = (0.3, 0.9) if kind == "dml" else (0.2, 0.8)
    distilled, head = expected(logits, teacher), model.student.head.loss(logits, TARGETS)["loss"]
    assert outputs["loss"].item() == pytest.approx((weight * distilled + head_weight * head).item(), rel=1e-5)
    assert list(outputs) == ["loss", "acc1", "acc5", "head_loss", f"{kind}_loss"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"alpha": 0.5, "tau": 2.0, "head_loss_weight": 0.3}, "model: alpha, tau: without effect on the dml loss"),
        ({"distillation_type": "hard", "alpha": 0.5, "tau": 2.0}, "model: tau: without effect on the hard loss"),
        (
            {"distillation_type": "soft", "tau": 2.0, "dml_loss_weight": 0.5, "head_loss_weight": 0.5},
            "model: dml_loss_weight, head_loss_weight: without effect on the soft loss",
        ),
        ({"distillation_type": "soft", "alpha": 0.1, "tau": 2.0}, None),
        ({"dml_loss_weight": 0.4}, None),
    ],
)
def test_keys_that_the_loss_does_not_have_are_told(options, told, tmp_path, capsys):
    setup_logger()
    wrapper(tmp_path, **options)
    lines = [line.partition("WARNING: ")[2] for line in capsys.readouterr().out.splitlines() if "effect" in line]
    assert lines == ([told] if told else [])


def test_nothing_outside_sees_the_teacher(tmp_path):
    model = wrapper(tmp_path)
    model.train()
    assert not model.teacher.training and model.student.training
    assert all(name.startswith("Student.") for name in model.state_dict())
    assert len(model.parameters()) == len(model.student.parameters())
    assert not any(layer is model.teacher for layer in model.sublayers())


def test_outside_training_it_is_the_student(tmp_path):
    model = wrapper(tmp_path)
    model.eval()
    np.testing.assert_array_equal(model(IMAGES).numpy(), model.student(IMAGES).numpy())
    assert model.num_classes == 3 and model.backbone is model.student.backbone


def test_training_changes_not_a_byte_of_the_teacher(tmp_path):
    trainer = builder.build_trainer(cfg := load_config(config(tmp_path)), builder.build_model(cfg))
    trainer.output_dir.mkdir()
    before = arrays_of(trainer.model.teacher)
    trainer.train()
    after = arrays_of(trainer.model.teacher)
    assert any("_mean" in name for name in before)
    for name, array in before.items():
        assert array.tobytes() == after[name].tobytes(), name
    assert all(parameter.grad is None for parameter in trainer.model.teacher.parameters())


def test_the_teacher_sees_its_own_size_and_normalisation(tmp_path):
    given = {"input_mean": [10.0, 20.0, 30.0], "input_std": [2.0, 4.0, 5.0]}
    model = wrapper(tmp_path, teacher_mean=[1.0, 2.0, 3.0], teacher_std=[3.0, 3.0, 6.0], teacher_size=16, **given)
    raw = 100 * np.random.RandomState(0).rand(2, 3, 8, 8)
    ours = (raw - np.reshape(given["input_mean"], (3, 1, 1))) / np.reshape(given["input_std"], (3, 1, 1))
    theirs = (raw - np.reshape([1.0, 2.0, 3.0], (3, 1, 1))) / np.reshape([3.0, 3.0, 6.0], (3, 1, 1))
    seen = model.teacher_images(paddle.to_tensor(ours.astype("float32")))
    assert seen.shape == [2, 3, 16, 16]
    np.testing.assert_allclose(seen.numpy().mean(axis=(2, 3)), theirs.mean(axis=(2, 3)), rtol=0.1)
    model.teacher_size = None
    seen = model.teacher_images(paddle.to_tensor(ours.astype("float32")))
    np.testing.assert_allclose(seen.numpy(), theirs, rtol=1e-4)


def test_a_run_trains_evaluates_resumes_and_its_student_is_taken_out(tmp_path):
    teacher = wrapper(tmp_path).teacher
    write_file(tmp_path / "teacher.pdparams", arrays_of(teacher))
    options = {"pretrained_list": [str(tmp_path / "teacher.pdparams"), None]}
    path = config(tmp_path, **options)
    launch.run(path, [parse_override(f"output_dir={tmp_path}/whole")])
    launch.run(path, [parse_override(f"output_dir={tmp_path}/parts"), parse_override("epochs=1")])
    launch.run(path, [parse_override(f"output_dir={tmp_path}/parts")], resume_from="auto")
    whole, parts = (read_file(tmp_path / name / "epoch_2.pdparams")["state_dict"] for name in ("whole", "parts"))
    assert all(name.startswith("Student.") for name in whole)
    for name, array in whole.items():
        assert array.tobytes() == parts[name].tobytes(), name
    (tmp_path / "teacher.pdparams").unlink()
    accuracy = launch.run(path, load=tmp_path / "whole" / "epoch_2.pdparams", evaluate_only=True)
    assert accuracy == tiny_run(tmp_path, load=tmp_path / "whole" / "epoch_2.pdparams", evaluate_only=True)


def test_a_run_is_not_resumed_with_another_teacher(tmp_path):
    write_file(tmp_path / "teacher.pdparams", arrays_of(wrapper(tmp_path).teacher))
    path = config(tmp_path, pretrained_list=[str(tmp_path / "teacher.pdparams"), None])
    launch.run(path, [parse_override("epochs=1")])
    paddle.seed(1)
    write_file(tmp_path / "teacher.pdparams", arrays_of(factory.build(model_node(tmp_path)).teacher))
    with pytest.raises(CheckpointError, match=r"epoch_1.pdparams: was written with teacher \w+, this run has \w+"):
        launch.run(path, resume_from="auto")


def test_the_keys_that_passls_distillation_files_have_besides_are_taken(tmp_path):
    data = yaml.safe_load(config(tmp_path).read_text())
    data["model"]["models"][1]["Student"]["architecture"]["img_size"] = 224
    for split in ("train", "val"):
        data["dataloader"][split]["num_workers"] = 1
    (tmp_path / "passl.yaml").write_text(yaml.safe_dump(data))
    cfg = load_config(tmp_path / "passl.yaml")
    builder.check_config(cfg, training=True)
    assert builder.build_model(cfg).num_classes == 3
    assert builder.build_loader(cfg, "train", 3).num_workers == 1
    data["dataloader"]["train"]["loader"] = {"num_workers": 2}
    (tmp_path / "passl.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigError, match="dataloader.train.num_workers: is given twice: here and in loader"):
        builder.build_loader(load_config(tmp_path / "passl.yaml"), "train", 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"infer_model_key": "Teacher"}, "infer_model_key must be 'Student', not 'Teacher'"),
        ({"dml_loss_weight": -1.0}, "dml_loss_weight -1.0, head_loss_weight 0.5: expected 0 or more"),
        ({"teacher_size": 2**40}, "teacher_size must lie between 1 and 10,000 pixels"),
        ({"freeze_params_list": [False, False]}, r"freeze_params_list must be \[True, False\]: the teacher is frozen"),
        ({"pretrained_list": [None]}, "pretrained_list needs one entry for each of models, not 1"),
        ({"distillation_type": "kd"}, "distillation_type must be dml, hard, soft, not 'kd'"),
        ({"alpha": 1.5}, r"alpha must lie in \[0, 1\], not 1.5"),
        ({"tau": 0.0}, "tau must lie between 0.01 and 1000, not 0.0"),
        ({"teacher_size": 0}, "teacher_size must lie between 1 and 10,000 pixels, not 0"),
        ({"teacher_mean": [1.0]}, "teacher_mean needs input_mean, input_std and teacher_std with it, 3 numbers each"),
        ({"classes": 5}, "models have 5 and 3 classes: expected as many"),
        ({"dml_weight": 1.0}, "DistillationWrapper takes no 'dml_weight'; did you mean"),
    ],
)
def test_what_cannot_be_right_is_refused(options, message, tmp_path):
    cfg = load_config(config(tmp_path, **options))
    with pytest.raises(ConfigError, match=message):
        builder.check_config(cfg, training=True)
        builder.build_model(cfg)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([], "models needs one named Teacher and one named Student, not"),
        ([{"A": {"name": "X"}}], "no model 'X'"),
        ([{"A": {}, "B": {}}], "expected one name with a model below it"),
        (["Teacher"], "expected one name with a model below it"),
        ("Teacher", "expects a list of mapping"),
    ],
)
def test_a_list_of_models_that_cannot_be_right_is_refused(models, message, tmp_path):
    cfg = load_config(config(tmp_path, models=models))
    with pytest.raises(ConfigError, match=message):
        builder.check_config(cfg, training=True)
        builder.build_model(cfg)


@pytest.mark.parametrize("lists", [[[]] * 4, [[1.0, 1.0]] * 4])
def test_a_normalisation_has_a_number_for_each_channel(lists, tmp_path):
    keys = ("input_mean", "input_std", "teacher_mean", "teacher_std")
    with pytest.raises(ConfigError, match="3 numbers each"):
        wrapper(tmp_path, **dict(zip(keys, lists)))


def test_a_student_that_is_a_distillation_is_refused(tmp_path):
    node = model_node(tmp_path)
    node["models"][1]["Student"] = model_node(tmp_path)
    with pytest.raises(ConfigError, match="models must be two classifications, each a backbone with a head"):
        factory.build(node)


def test_a_run_takes_its_own_checkpoint_or_a_plain_models_as_the_students_weights(tmp_path):
    path = config(tmp_path)
    launch.run(path, [parse_override("epochs=1"), parse_override(f"output_dir={tmp_path}/one")])
    own = tmp_path / "one" / "epoch_1.pdparams"
    plain = {name.removeprefix("Student."): array for name, array in read_file(own)["state_dict"].items()}
    write_file(tmp_path / "plain.pdparams", plain)
    for weights in (own, tmp_path / "plain.pdparams"):
        model = wrapper(tmp_path)
        load_weights(model, weights)
        for name, array in arrays_of(model.student).items():
            np.testing.assert_array_equal(array, plain[name])


def test_a_teacher_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere.pdparams: there is no such file"):
        wrapper(tmp_path, pretrained_list=["nowhere.pdparams", None])


def test_it_is_registered_under_passls_name():
    assert factory.MODELS["DistillationWrapper"].make is DistillationWrapper
