"""Config files: inheritance, overrides, strict reading, and messages that name the file and the place."""

import copy
import os
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from passl_xcit.engine.builder import check_config
from passl_xcit.utils.config import MAX_BYTES, Config, Override, dump_config, load_config, parse_override
from passl_xcit.utils.errors import ConfigError

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))

EXPERIMENT = yaml.safe_load(
    """
    epochs: 3
    model:
      name: SwinWrapper
      architecture: {name: xcit_nano_12_p16, drop_path_rate: 0.1}
      head: {name: SwinTransformerClsHead, in_channels: 128, num_classes: 10}
    dataloader:
      train:
        loader: {num_workers: 2}
        sampler: {batch_size: 8, shuffle: true}
        dataset:
          name: ImageNet
          dataroot: data/train
          transforms:
            - {name: RandomResizedCrop, size: 224, scale: [0.08, 1.0]}
            - {name: Transpose}
            - {name: Normalize, mean: [123.675, 116.28, 103.53], std: [58.395, 57.12, 57.375]}
          batch_transforms:
            - {name: Mixup, mixup_alpha: 0.8}
      val:
        sampler: {batch_size: 8}
        dataset: {name: FashionMNIST, split: test}
    lr_scheduler:
      name: LinearWarmup
      learning_rate: {name: CosineAnnealingDecay, learning_rate: 0.0005, T_max: 3}
      warmup_steps: 1
      start_lr: 1.0e-6
      end_lr: 0.0005
    optimizer: {name: AdamW, weight_decay: 0.05}
    custom_config:
      - {name: EvaluateHook}
    """
)


@pytest.fixture
def write(tmp_path):
    """Write `text`, or a mapping as YAML, to a file in the test's folder; returns its path."""

    def to_file(text, name="config.yaml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if isinstance(text, str) else yaml.safe_dump(text, sort_keys=False), encoding="utf-8")
        return path

    return to_file


def load(path, *options):
    return load_config(path, [parse_override(option) for option in options])


def refusal(path, *options):
    with pytest.raises(ConfigError) as caught:
        load(path, *options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What a file may hold.


def test_values_are_read_as_their_kinds(write):
    text = "i: 3\nf: 0.5\nt: a text\nb: true\nn: null\nl: [1, {a: 2}]\nd: {a: {b: 1}}\ns: '1e-5'\n"
    expected = {"i": 3, "f": 0.5, "t": "a text", "b": True, "n": None, "l": [1, {"a": 2}], "d": {"a": {"b": 1}}}
    assert load(write(text)).to_dict() == {**expected, "s": "1e-5"}


@pytest.mark.parametrize("text", ["5e-4", "1e-05", "1E5", "+2e3", "-1e-5", "1.e-5", "2.5e+7", "1.0e-6", ".5e-3"])
def test_every_notation_of_a_float_is_a_number_also_inside_lists(write, text):
    cfg = load(write(f"a: {text}\nb: [{{c: [{text}]}}]\n"), f"d={text}")
    for value in (cfg["a"], cfg["b"][0]["c"][0], cfg["d"]):
        assert isinstance(value, float) and value == float(text)


@pytest.mark.parametrize("text", ["1e", "e5", "1e-5x", "v1e5", "5e-4.5"])
def test_what_only_looks_like_a_float_stays_text(write, text):
    assert load(write(f"a: {text}\n"))["a"] == text


def test_an_anchor_may_be_used_again(write):
    cfg = load(write("a: &size [1, 2]\nb: *size\n"))
    assert cfg.to_dict() == {"a": [1, 2], "b": [1, 2]}


def test_a_bom_and_windows_line_ends_are_no_text(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes("\ufeffa: 1\r\nb: x\r\n".encode())
    assert load(path).to_dict() == {"a": 1, "b": "x"}


def bomb(levels=9, width=9):
    """YAML of `levels` lists, each `width` aliases of the one before."""
    lines = ["a0: &a0 [x]"]
    for level in range(1, levels + 1):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * width)}]")
    return "\n".join(lines) + "\n"


def merge_bomb(levels=9, width=9):
    return bomb(levels, width).replace("[x]", "{x: 1}").replace(" [*", " {<<: [*").replace("]\n", "]}\n")


MALFORMED = {  # text: the message after "config.yaml"
    "": ": a config is a mapping of keys to values, not NoneType",
    "# nothing but a comment\n": ": a config is a mapping of keys to values, not NoneType",
    "- a\n- b\n": ": a config is a mapping of keys to values, not list",
    "just text\n": ": a config is a mapping of keys to values, not str",
    "a: 1\n---\nb: 2\n": ":2: but found another document",
    "a: 1\nb: 2\na: 3\n": ":3: 'a' is given twice",
    "a:\n  b: 1\n  'b': 2\n": ":3: 'b' is given twice",
    "a: [{b: 1, b: 1}]\n": ":1: 'b' is given twice",
    "a: 1\n1: 2\n": ":2: a key is not text: quote it",
    "a: {true: 2}\n": ":1: a key is not text: quote it",
    "null: 2\n": ":1: a key is not text: quote it",
    "? [a, b]\n: 1\n": ":1: a key is not text: quote it",
    "? !!str [a]\n: 1\n": ":1: a key is not text: quote it",
    "a: &a {x: 1}\nb:\n  <<: *a\n": ":3: '<<' is not read: use _base_",
    "a: .nan\n": ": nan is not a finite number",
    "a: [{b: -.inf}]\n": ": -inf is not a finite number",
    "a: 1e999\n": ": inf is not a finite number",
    "a: 2024-01-31\n": ": datetime.date(2024, 1, 31) is neither text nor a number (quote it to make it text)",
    "a: 2024-01-31 10:00:00\n": ": datetime.date... 1, 31, 10, 0) is neither text nor a number (quote it to",
    "a: 2024-99-01\n": ": month must be in 1..12",
    "a: !!set {x}\n": ": {'x'} is neither text nor a number (quote it to make it text)",
    "a: !!binary aGFsbG8=\n": ": b'hallo' is neither text nor a number (quote it to make it text)",
    "a: !!omap [x: 1]\n": ": ('x', 1) is neither text nor a number (quote it to make it text)",
    "a: !!bool x\n": ": a value does not fit the tag before it",
    "a: !!int ''\n": ": a value does not fit the tag before it",
    "a: !!timestamp x\n": ": a value does not fit the tag before it",
    "a: !!int x\n": ": invalid literal for int() with base 10: 'x'",
    "a: !!map [x]\n": ":1: expected a mapping node, but found sequence",
    "a: !mine x\n": ":1: could not determine a constructor for the tag '!mine'",
    "a: *b\n": ":1: found undefined alias 'b'",
    "a: [1, 2\nb: 3\n": ":2: expected ',' or ']', but got ':'",
    "a:\tb\n\t- c\n": ":1: found character '\\t' that cannot start any token",
    "a: b: c\n": ":1: mapping values are not allowed here",
    "a: \x01\n": ": unacceptable character #x0001: special characters are not allowed",
    "a: " + "[" * 3000 + "]" * 3000 + "\n": ": nested too deeply",
    "a: " + "[" * 60 + "]" * 60 + "\n": ": too large: aliases that repeat themselves, or too deep",
    "a: " + "9" * 5000 + "\n": ": Exceeds the limit (4300 digits) for integer string conversion",
    "a: &a [*a]\n": ": too large: aliases that repeat themselves, or too deep",
    "a: &a {b: *a}\n": ": too large: aliases that repeat themselves, or too deep",
    bomb(): ": too large: aliases that repeat themselves, or too deep",
    bomb() + "? *a9\n: 1\n": ":10: a key is not text: quote it",
    bomb() + "b: !!omap [x: *a9]\n": ": ('x', [[[[[[...",
    merge_bomb(): ":2: '<<' is not read: use _base_",
}


@pytest.mark.parametrize("text", MALFORMED, ids=lambda text: repr(text[:24]))
def test_what_is_no_config_is_refused_at_once_with_file_and_line(write, text):
    path, start = write(text), time.perf_counter()
    assert refusal(path).startswith(f"{path}{MALFORMED[text]}")
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.mkdir [{folder}]",
        "!!python/object/new:os.mkdir [{folder}]",
        "!!python/object/apply:subprocess.check_call [[mkdir, {folder}]]",
        "!!python/name:os.mkdir ''",
        "!!python/module:antigravity ''",
        "!!python/tuple [1, 2]",
    ],
)
def test_a_python_tag_runs_nothing(write, tmp_path, tag):
    folder = tmp_path / "made"
    path = write(f"a: {tag.format(folder=folder)}\n")
    assert ":1: could not determine a constructor for the tag 'tag:yaml.org,2002:python/" in refusal(path)
    with pytest.raises(ConfigError, match="could not determine a constructor"):
        parse_override(f"a={tag.format(folder=folder)}")
    assert not folder.exists()


def test_files_that_cannot_be_read_are_refused(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    (tmp_path / "large.yaml").write_text("a: 1\n" + "#" * MAX_BYTES)
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    for name, reason in {
        "binary.yaml": "the config cannot be read: not a text file",
        "large.yaml": "a config has at most 1,000,000 bytes; is this a YAML file?",
        "folder.yaml": "the config cannot be read: Is a directory",
        "missing.yaml": "the config cannot be read: No such file or directory",
        "loop.yaml": "the config cannot be read: Too many levels of symbolic links",
    }.items():
        assert refusal(tmp_path / name) == f"{tmp_path / name}: {reason}"


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("configs/xcit/tiny_12_p16_224_ascend.yaml", "configs/xcit/tiny_12_p16_ascend.yaml"),
        ("configs/xcit/tiny_12_p16_ascend.yml", "configs/xcit/tiny_12_p16_ascend.yaml"),
        ("configs/tiny_12_p16_ascend.yaml", "configs/xcit/tiny_12_p16_ascend.yaml"),  # its folder left out
        ("configs/xcit/mine.yaml", "configs/xcit/mine_2.yaml"),  # before one of the same name in a folder below
        ("configs/xcit/resnet.yaml", None),
        ("conf/xcit/tiny_12_p16_ascend.yaml", None),
        ("configs/xcit/dangling.yaml", None),
    ],
)
def test_a_file_that_is_not_there_names_the_one_that_is_called_most_like_it(asked, meant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs" / "xcit" / "old").mkdir(parents=True)
    for name in ("tiny_12_p16_ascend", "tiny_24_p16_ascend", "mine_2", "old/mine_2"):
        (tmp_path / "configs" / "xcit" / f"{name}.yaml").write_text("a: 1")
    (tmp_path / "configs" / "xcit" / "dangling.yaml").symlink_to("nowhere")
    hint = f"; did you mean {meant}?" if meant else ""
    assert refusal(asked) == f"{asked}: the config cannot be read: No such file or directory{hint}"


def test_the_config_that_mindcvs_page_names_and_mindcv_does_not_have_is_answered_with_the_one_there_is():
    folder = Path(__file__).resolve().parents[2] / "configs" / "xcit"
    message = refusal(folder / "xcit_tiny_12_p16_224_ascend.yaml")
    assert message.endswith(f"No such file or directory; did you mean {folder / 'xcit_tiny_12_p16_ascend.yaml'}?")


# _base_


def test_a_child_wins_over_its_base_key_by_key(write):
    write({"a": 1, "b": {"c": 2, "d": [1, 2]}, "e": 5}, "base.yaml")
    cfg = load(write({"_base_": "base.yaml", "b": {"c": 3, "d": [7]}, "f": 6}))
    assert cfg.to_dict() == {"a": 1, "b": {"c": 3, "d": [7]}, "e": 5, "f": 6}


def test_bases_are_found_beside_the_file_that_names_them(write, monkeypatch, tmp_path):
    write({"depth": 0, "a": "root"}, "root.yaml")
    write({"_base_": "../root.yaml", "depth": 1, "b": "middle"}, "middle/middle.yaml")
    path = write({"_base_": "../../middle/middle.yaml", "depth": 2}, "deep/er/child.yaml")
    monkeypatch.chdir(tmp_path / "deep")
    assert load(Path("er/child.yaml")).to_dict() == load(path).to_dict() == {"depth": 2, "a": "root", "b": "middle"}


def test_of_several_bases_the_later_one_wins(write):
    write({"a": 1, "b": 1, "c": {"x": 1}}, "one.yaml")
    write({"b": 2, "c": {"y": 2}}, "two.yaml")
    cfg = load(write("_base_: [one.yaml, two.yaml]\nd: 4\n"))
    assert cfg.to_dict() == {"a": 1, "b": 2, "c": {"x": 1, "y": 2}, "d": 4}


def test_a_base_may_be_named_by_two_files(write):
    write({"a": 1, "b": 1}, "root.yaml")
    write("_base_: root.yaml\nb: 2\n", "left.yaml")
    write("_base_: root.yaml\n", "right.yaml")
    assert load(write("_base_: [right.yaml, left.yaml]\n")).to_dict() == {"a": 1, "b": 2}


def test_a_node_with_another_name_replaces_the_whole_node(write):
    write({"optimizer": {"name": "AdamW", "beta1": 0.9, "decay": {"x": 1}}}, "base.yaml")
    same = load(write({"_base_": "base.yaml", "optimizer": {"name": "AdamW", "beta1": 0.5}}))
    other = load(write({"_base_": "base.yaml", "optimizer": {"name": "SGD", "lr": 1}}))
    assert same["optimizer"] == {"name": "AdamW", "beta1": 0.5, "decay": {"x": 1}}
    assert other["optimizer"] == {"name": "SGD", "lr": 1}


def test_null_takes_a_node_of_the_base_away(write):
    write({"checkpoint": {"name": "CheckpointHook", "interval": 2}}, "base.yaml")
    assert load(write("_base_: base.yaml\ncheckpoint:\n"))["checkpoint"] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_base_: missing.yaml\n", "{folder}/missing.yaml: the config cannot be read: No such file or directory"),
        ("_base_: config.yaml\n", "{folder}/config.yaml: _base_ leads back to this file"),
        ("_base_: other/../config.yaml\n", "{folder}/other/../config.yaml: _base_ leads back to this file"),
        ("_base_: 3\n", "{folder}/config.yaml: _base_ is a path or a list of paths, not 3"),
        ("_base_: [a.yaml, 3]\n", "{folder}/config.yaml: _base_ is a path or a list of paths, not ['a.yaml', 3]"),
        ("_base_: {a: b}\n", "{folder}/config.yaml: _base_ is a path or a list of paths, not {{'a': 'b'}}"),
        ('_base_: "a\\0b"\n', "{folder}/a\0b: the config cannot be read: not a text file"),
        ("_base_: bad.yaml\n", "{folder}/bad.yaml:2: 'x' is given twice"),
    ],
)
def test_a_base_that_cannot_be_is_refused(write, tmp_path, text, message):
    write("x: 1\nx: 1\n", "bad.yaml")
    (tmp_path / "other").mkdir()
    assert refusal(write(text)) == message.format(folder=tmp_path)


def test_a_circle_of_bases_is_refused(write):
    write("_base_: two.yaml\n", "one.yaml")
    write("_base_: config.yaml\n", "two.yaml")
    assert refusal(write("_base_: one.yaml\n")).endswith("config.yaml: _base_ leads back to this file")


leaves = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
trees = st.recursive(
    leaves | st.text("abc", max_size=3) | st.lists(leaves, max_size=2),
    lambda children: st.dictionaries(st.sampled_from("abcd"), children, max_size=3),
    max_leaves=8,
)
mappings = st.dictionaries(st.sampled_from("abcd"), trees, max_size=4)


def leaves_of(tree, path=()):
    """{path: value} of everything that is no mapping, and of the empty ones."""
    if not isinstance(tree, dict) or not tree:
        return {path: tree}
    return {place: leaf for key, child in tree.items() for place, leaf in leaves_of(child, (*path, key)).items()}


@given(mappings, mappings)
def test_the_child_has_all_its_values_and_the_base_only_fills_gaps(tmp_path_factory, base, child):
    folder = tmp_path_factory.mktemp("merge")
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    (folder / "child.yaml").write_text(yaml.safe_dump({"_base_": "base.yaml", **child}))
    merged = leaves_of(load(folder / "child.yaml").to_dict())
    ours, theirs = leaves_of(child), leaves_of(base)
    for place, value in ours.items():
        assert merged.get(place) == value or value == {}  # an empty mapping takes in what the base has there
    for place, value in merged.items():
        assert place in ours or value == theirs.get(place, {})


# -o


def test_an_override_replaces_a_value_of_any_depth(write):
    cfg = load(write(EXPERIMENT), "epochs=9", "dataloader.train.sampler.batch_size=4", "seed=3")
    assert (cfg["epochs"], cfg["dataloader"]["train"]["sampler"]["batch_size"], cfg["seed"]) == (9, 4, 3)


def test_an_override_reaches_into_lists(write):
    place = "dataloader.train.dataset.transforms"
    cfg = load(write(EXPERIMENT), f"{place}.0.size=96", f"{place}.2.mean.1=7")
    transforms = cfg["dataloader"]["train"]["dataset"]["transforms"]
    assert transforms[0]["size"] == 96 and transforms[2]["mean"] == [123.675, 7, 103.53]


def test_an_override_adds_keys_that_the_file_leaves_out(write):
    cfg = load(write("a: 1\n"), "log_config.name=LogHook", "log_config.interval=5")
    assert cfg["log_config"] == {"name": "LogHook", "interval": 5}


def test_later_overrides_win(write):
    assert load(write("a: 1\n"), "a=2", "a=3")["a"] == 3


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("model.name=max", "max"),
        ("model.name=1e-3", 1e-3),
        ("model.name=[1, 2e-5]", [1, 2e-5]),
        ("model.name={name: x, size: [3]}", {"name": "x", "size": [3]}),
        ("model.name=", None),
        ("model.name=None", None),
        ("model.name=a=b", "a=b"),
        ("model.name='3'", "3"),
        ("model.name=true", True),
        ("model.name=__import__('os').getcwd()", "__import__('os').getcwd()"),
    ],
)
def test_the_value_of_an_override_is_yaml(text, value):
    assert parse_override(text) == Override("model.name", value, f"-o {text}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs", "-o epochs: expected KEY=VALUE, such as -o epochs=10"),
        ("=3", "-o =3: expected KEY=VALUE, such as -o epochs=10"),
        ("", "-o : expected KEY=VALUE, such as -o epochs=10"),
        ("a=[1", "-o a=[1: the value cannot be read: expected ',' or ']', but got '<stream end>'"),
        ("a=.nan", "-o a=.nan: the value cannot be read: nan is not a finite number"),
        ("a={b: 1, b: 2}", "-o a={b: 1, b: 2}: the value cannot be read: 'b' is given twice"),
        ("a=2024-01-01", "-o a=2024-01-01: the value cannot be read: datetime.date(2024, 1, 1) is neither text nor"),
        ("a=!!bool x", "-o a=!!bool x: the value cannot be read: a value does not fit the tag before it"),
        ("a=&a [*a]", "-o a=&a [*a]: the value cannot be read: too large: aliases that repeat themselves"),
    ],
)
def test_an_override_that_cannot_be_read_is_refused(text, message):
    with pytest.raises(ConfigError) as caught:
        parse_override(text)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("epochs.x=1", "-o epochs.x=1: epochs is 3, which has nothing below it"),
        ("custom_config.1.name=x", "-o custom_config.1.name=x: '1' is no place in a list of 1 (counted from 0)"),
        ("custom_config.1=x", "-o custom_config.1=x: '1' is no place in a list of 1 (counted from 0)"),
        ("custom_config.-1=x", "-o custom_config.-1=x: '-1' is no place in a list of 1 (counted from 0)"),
        ("custom_config.\u00b2=x", "-o custom_config.\u00b2=x: '\u00b2' is no place in a list of 1 (counted from 0)"),
        ("custom_config.name=x", "-o custom_config.name=x: 'name' is no place in a list of 1 (counted from 0)"),
    ],
)
def test_an_override_without_a_place_is_refused(write, option, message):
    assert refusal(write(EXPERIMENT), option) == message


def test_an_override_changes_one_place_also_where_an_alias_stands_for_several(write):
    path = write("train: &t [{size: 1}]\nval: *t\n")
    assert load(path, "val.0.size=2").to_dict() == {"train": [{"size": 1}], "val": [{"size": 2}]}


def test_an_override_is_not_changed_by_the_ones_after_it(write):
    overrides = [parse_override("a={b: 1}"), parse_override("a.b=2")]
    assert load_config(write("x: 1\n"), overrides)["a"] == {"b": 2}
    assert overrides[0].value == {"b": 1}


@given(mappings, st.lists(st.sampled_from("abcd"), min_size=1, max_size=4), trees)
def test_an_override_can_be_read_back_and_the_rest_stays(tmp_path_factory, data, keys, value):
    path = tmp_path_factory.mktemp("override") / "config.yaml"
    path.write_text(yaml.safe_dump(data))
    try:
        changed = load_config(path, [Override(".".join(keys), value, "-o")])
    except ConfigError:
        return  # there was a number in the way
    found, before = changed.to_dict(), copy.deepcopy(data)
    for key in keys[:-1]:
        found, before = found[key], before.get(key, {}) if isinstance(before, dict) else {}
    assert found[keys[-1]] == value
    assert {k: v for k, v in found.items() if k != keys[-1]} == {k: v for k, v in before.items() if k != keys[-1]}
    assert {k: v for k, v in changed.to_dict().items() if k != keys[0]} == {
        k: v for k, v in data.items() if k != keys[0]
    }


# Config


def test_what_one_reads_out_of_a_config_is_a_copy(write):
    cfg = load(write(EXPERIMENT))
    for node in (cfg["model"], cfg.get("model"), cfg.to_dict()["model"]):
        node["head"]["num_classes"] = 99
    assert cfg["model"]["head"]["num_classes"] == 10


def test_get_gives_the_default_for_what_is_not_there(write):
    cfg = load(write("a: 1\n"))
    assert (cfg.get("a", 2), cfg.get("b", 2), cfg.get("b"), "a" in cfg, "b" in cfg) == (1, 2, None, True, False)


def test_values_added_later_stand_at_the_end_and_leave_the_config_as_it_was():
    cfg = Config({"a": 1, "b": 2}, {})
    assert list(cfg.with_values(a=3, c=4).to_dict().items()) == [("b", 2), ("a", 3), ("c", 4)]
    assert cfg.to_dict() == {"a": 1, "b": 2}


def test_every_value_knows_where_it_came_from(write):
    base = write({"a": {"x": 1, "y": [1, {"z": 2}]}, "o": {"name": "old", "p": 1}}, "base.yaml")
    child = write({"_base_": "base.yaml", "a": {"y": [3, {"z": 4}]}, "o": {"name": "new", "q": 1}})
    cfg = load(child, "a.x2=5", "a.y.0=6", "n.e.w={k: 1}")
    origins = {
        "a.x": str(base),
        "a.y": str(child),
        "a.y.1.z": str(child),
        "a.y.0": "-o a.y.0=6",
        "a.x2": "-o a.x2=5",
        "n": "-o n.e.w={k: 1}",
        "n.e.w.k": "-o n.e.w={k: 1}",
        "o.q": str(child),
        "unknown.place": str(child),
    }
    assert {path: cfg.where(path) for path in origins} == origins


def test_an_override_of_a_whole_node_is_the_origin_of_all_that_is_in_it(write):
    cfg = load(write({"head": {"name": "A", "size": 1}}), "head={name: B, size: 2}")
    assert cfg.where("head.size") == "-o head={name: B, size: 2}"


def test_errors_name_the_file_once(write):
    path = write("a: {b: 1}\n")
    cfg = load(path)
    with pytest.raises(ConfigError) as caught, cfg.errors_name_files(), cfg.errors_name_files():
        raise ConfigError("is wrong", "a.b")
    assert str(caught.value) == f"{path}: a.b: is wrong"


# Files that were printed.


@given(trees.filter(lambda tree: isinstance(tree, dict)))
def test_a_printed_config_is_a_file_of_the_same_config(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("printed") / "config.yaml"
    path.write_text(repr(Config(data, {})))
    assert load(path).to_dict() == data


def test_the_config_that_passl_prints_runs_as_a_file():
    cfg = load(GOLDEN / "passl_seed_config.yaml")
    assert cfg["lr_scheduler"]["learning_rate"]["eta_min"] == 1e-05 and cfg["is_train"] is False
    check_config(cfg, training=True)
    check_config(cfg, training=False)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_of_the_project_is_right(path):
    if path.parent.name != "_base_":
        check_config(load(path), training=True)


# check_config: every key and value of a file, before anything is built.

TRANSFORMS = "dataloader.train.dataset.transforms"
WRONG_KEYS = [  # what is set, the path it is reported at, and the rest of the message
    ("epoch=3", "epoch", "the config takes no 'epoch'; did you mean 'epochs'?"),
    ("model.heads={}", "model.heads", "SwinWrapper takes no 'heads'; did you mean 'head'?"),
    ("model.name=SwinWraper", "model.name", "no model 'SwinWraper'; did you mean 'SwinWrapper'?"),
    ("model.architecture.drop_path_rat=0.1", "", "xcit_nano_12_p16 takes no 'drop_path_rat'; did you mean 'drop_path"),
    ("model.architecture.name=xcit_nano12_p16", "", "no backbone 'xcit_nano12_p16'; did you mean 'xcit_nano_12_p16'?"),
    ("model.head.num_clases=3", "", "SwinTransformerClsHead takes no 'num_clases'; did you mean 'num_classes'?"),
    ("dataloader.test={}", "dataloader.test", "dataloader takes no 'test'; known: train, val"),
    ("dataloader.train.loader.num_worker=1", "", "loader takes no 'num_worker'; did you mean 'num_workers'?"),
    ("dataloader.train.samplr={}", "", "dataloader takes no 'samplr'; did you mean 'sampler'?"),
    ("dataloader.val.sampler.batchsize=1", "", "DistributedBatchSampler takes no 'batchsize'; did you mean 'batch_s"),
    ("dataloader.val.sampler.rank=1", "", "DistributedBatchSampler takes no 'rank'; known: batch_size, drop_last, sh"),
    ("dataloader.train.dataset.data_root=x", "", "ImageNet takes no 'data_root'; did you mean 'dataroot'?"),
    ("dataloader.val.dataset.seed=1", "", "FashionMNIST takes no 'seed'; known: batch_transforms, return_label, spli"),
    (f"{TRANSFORMS}.0.sise=1", "", "RandomResizedCrop takes no 'sise'; did you mean 'size'?"),
    (f"{TRANSFORMS}.1.name=Transposed", "", "no transform 'Transposed'; did you mean 'Transpose'?"),
    ("dataloader.train.dataset.batch_transforms.0.alpha=1", "", "Mixup takes no 'alpha'; "),
    ("lr_scheduler.warmup=1", "", "LinearWarmup takes no 'warmup'; did you mean 'warmup_steps'?"),
    ("lr_scheduler.learning_rate.Tmax=1", "", "CosineAnnealingDecay takes no 'Tmax'; did you mean 'T_max'?"),
    ("optimizer.wieght_decay=1", "", "AdamW takes no 'wieght_decay'; did you mean 'weight_decay'?"),
    ("optimizer.learning_rate=1", "", "AdamW takes no 'learning_rate'; known: "),
    ("log_config={name: LogHook, intervall: 1}", "log_config.intervall", "LogHook takes no 'intervall'; did you mean"),
    ("custom_config.0.intervall=1", "", "EvaluateHook takes no 'intervall'; did you mean 'interval'?"),
    ("custom_config.0.name=EvalHook", "", "no hook 'EvalHook'; did you mean 'EvaluateHook'?"),
]
WRONG_VALUES = [
    ("epochs=3.5", "epochs", "the config expects int or null, not 3.5"),
    ("epochs=0", "epochs", "must be at least 1, not 0"),
    ("seed=-1", "seed", "must lie in [0, 2**63), not -1"),
    ("seed=one", "seed", "the config expects int, not 'one'"),
    ("output_dir=3", "output_dir", "the config expects text, not 3"),
    ("model=XCiT", "model", "the config expects mapping, not 'XCiT'"),
    ("model.head=[1]", "model.head", "SwinWrapper expects mapping, not [1]"),
    ("model.architecture.drop_path_rate=high", "", "xcit_nano_12_p16 expects number, not 'high'"),
    ("model.architecture.tokens_norm=1", "", "xcit_nano_12_p16 expects true/false, not 1"),
    ("model.head.num_classes=true", "", "SwinTransformerClsHead expects int, not True"),
    ("dataloader.train.loader.num_workers=two", "", "loader expects int, not 'two'"),
    ("dataloader.train.sampler.shuffle=1", "", "DistributedBatchSampler expects true/false, not 1"),
    ("dataloader.train.sampler=8", "", "dataloader expects mapping, not 8"),
    (f"{TRANSFORMS}=x", TRANSFORMS, "ImageNet expects a list of mapping or null, not 'x'"),
    (f"{TRANSFORMS}={{name: Transpose}}", TRANSFORMS, "ImageNet expects a list of mapping or null, not {'name': 'Tra"),
    (f"{TRANSFORMS}.0=RandomResizedCrop", "", "a transform is a mapping with a 'name', not 'RandomResizedCrop'"),
    (f"{TRANSFORMS}.0.size=big", "", "RandomResizedCrop expects int or a list of int, not 'big'"),
    (f"{TRANSFORMS}.2.mean=1", "", "Normalize expects a list of number, not 1"),
    ("lr_scheduler=[1]", "lr_scheduler", "the config expects mapping or null, not [1]"),
    ("lr_scheduler.learning_rate=fast", "", "LinearWarmup expects number or mapping, not 'fast'"),
    ("optimizer.exclude_from_weight_decay=bias", "", "AdamW expects a list of text or null, not 'bias'"),
    ("custom_config={name: EvaluateHook}", "custom_config", "the config expects a list of mapping or null, not {'na"),
]


@pytest.mark.parametrize(("option", "path", "message"), WRONG_KEYS + WRONG_VALUES)
def test_a_wrong_key_or_value_is_refused_with_its_origin_its_path_and_advice(write, option, path, message):
    expected = f"{path or option.split('=')[0]}: {message}"
    file = write(EXPERIMENT)
    by_option = load(file, option)
    in_file = load(write(by_option.to_dict(), "wrong.yaml"))
    in_base = load(write("_base_: wrong.yaml\nseed: 0\n" if "seed" not in option else "_base_: wrong.yaml\n"))
    for cfg, origin in ((by_option, f"-o {option}"), (in_file, "wrong.yaml"), (in_base, "wrong.yaml")):
        with pytest.raises(ConfigError) as caught:
            check_config(cfg, training=True)
        where = origin if origin.startswith("-o") else str(file.parent / origin)
        assert str(caught.value).startswith(f"{where}: {expected}")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("missing", "training", "message"),
    [
        ("model", True, "the config needs 'model', which is not given"),
        ("dataloader", False, "the config needs 'dataloader', which is not given"),
        ("epochs", True, "epochs: 'epochs' is needed to train"),
        ("optimizer", True, "optimizer: 'optimizer' is needed to train"),
        ("lr_scheduler", True, "lr_scheduler: 'lr_scheduler' is needed to train"),
        ("dataloader.train", True, "dataloader.train: 'dataloader.train' is needed to train"),
        ("dataloader.val", False, "dataloader.val: 'dataloader.val' is needed to evaluate"),
        ("model.head", True, "model: SwinWrapper needs 'head', which is not given"),
        ("model.head.in_channels", True, "model.head: SwinTransformerClsHead needs 'in_channels', which is not given"),
        ("dataloader.val.sampler.batch_size", True, "dataloader.val.sampler: DistributedBatchSampler needs 'batch_siz"),
        ("dataloader.val.dataset.name", True, "dataloader.val.dataset: this dataset has no 'name'; known: "),
    ],
)
def test_what_is_needed_and_missing_is_named(write, missing, training, message):
    data = copy.deepcopy(EXPERIMENT)
    *parents, last = missing.split(".")
    node = data
    for key in parents:
        node = node[key]
    del node[last]
    path = write(data)
    with pytest.raises(ConfigError) as caught:
        check_config(load(path), training)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_evaluating_needs_nothing_of_training(write):
    data = {key: EXPERIMENT[key] for key in ("model", "dataloader")}
    data["dataloader"] = {"val": data["dataloader"]["val"]}
    check_config(load(write(data)), training=False)


def test_reading_and_checking_make_no_file(write, tmp_path):
    check_config(load(write(EXPERIMENT)), training=True)
    assert os.listdir(tmp_path) == ["config.yaml"]


# What a config is written as.

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()
)
LIKE_OTHER_KINDS = st.sampled_from(
    ["None", "1e-3", "5E4", "null", "~", "yes", "0x10", "1_000", "12:30:45", "<<", "=", ""]
)


def trees(leaves):
    keys = st.one_of(st.text(max_size=5), LIKE_OTHER_KINDS)
    nodes = lambda kinds: st.one_of(st.lists(kinds, max_size=4), st.dictionaries(keys, kinds, max_size=4))  # noqa: E731
    return st.dictionaries(
        keys.filter(lambda key: key != "_base_"), st.recursive(leaves, nodes, max_leaves=12), max_size=4
    )


@given(tree=trees(st.one_of(SCALARS, LIKE_OTHER_KINDS)))
def test_what_is_written_is_read_back_as_it_was(tree, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(dump_config(tree), encoding="utf-8")
    read = load_config(path).to_dict()
    assert repr(read) == repr(tree)  # kinds and the order of keys, too


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_the_same_when_it_is_written_flat(path, tmp_path):
    flat = tmp_path / "config.yaml"
    flat.write_text(dump_config(load_config(path).to_dict()), encoding="utf-8")
    assert repr(load_config(flat)) == repr(load_config(path))
    assert "&" not in flat.read_text()  # no anchors
