"""A constructor's signature is the schema of its config node."""

import copy
import inspect
import json
from typing import Any, Optional, Sequence, Union

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passl_xcit.engine import builder
from passl_xcit.modeling.backbones.xcit import VARIANTS
from passl_xcit.utils import registry as every
from passl_xcit.utils.errors import ConfigError
from passl_xcit.utils.registry import Registry, nearest
from passl_xcit.utils.typing_check import fits

PROJECT = {name: value for name, value in vars(every).items() if isinstance(value, Registry)}
CONSTRUCTORS = [(kind, name) for kind, registry in PROJECT.items() for name in registry]


class Leaf:
    def __init__(self, size: int, rate: float = 0.5, veins: Optional[Sequence[str]] = None, seed: int = 0):
        if size < 0:
            raise ValueError(f"size must not be negative, but is {size}")
        self.size, self.rate, self.veins, self.seed = size, rate, veins, seed


class Tree:
    def __init__(self, leaves: Sequence[Leaf], top: Union[float, Leaf] = 1.0, label: Any = None, seed: int = 0):
        self.leaves, self.top, self.label, self.seed = list(leaves), top, label, seed


LEAVES, TREES = Registry("leaf"), Registry("tree", default="Tree")
LEAVES.register(Leaf, runtime=("seed",))
LEAVES.register(Leaf, "big_leaf", defaults={"size": 9, "rate": 0.9}, runtime=("seed",))
TREES.register(Tree, nodes={"leaves": LEAVES, "top": LEAVES}, runtime=("seed",))
LEAF = {"name": "Leaf", "size": 3}


def refusal(registry, node, path="here"):
    with pytest.raises(ConfigError) as caught:
        registry.check(node, path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("node", "text"),
    [
        ({**LEAF, "sise": 3}, "here.sise: Leaf takes no 'sise'; did you mean 'size'?"),
        ({**LEAF, "colour": 3}, "here.colour: Leaf takes no 'colour'; known: rate, size, veins"),
        ({**LEAF, "seed": 3}, "here.seed: Leaf takes no 'seed'; known: rate, size, veins"),
        ({**LEAF, "self": 3}, "here.self: Leaf takes no 'self'; known: rate, size, veins"),
        ({**LEAF, "size": 3.0}, "here.size: Leaf expects int, not 3.0"),
        ({**LEAF, "size": True}, "here.size: Leaf expects int, not True"),
        ({**LEAF, "rate": "5e-4"}, "here.rate: Leaf expects number, not '5e-4'"),
        ({**LEAF, "rate": None}, "here.rate: Leaf expects number, not None"),
        ({**LEAF, "veins": "v"}, "here.veins: Leaf expects a list of text or null, not 'v'"),
        ({**LEAF, "veins": ["v", 1]}, "here.veins: Leaf expects a list of text or null, not ['v', 1]"),
        ({"name": "Leaf"}, "here: Leaf needs 'size', which is not given"),
        ({"name": "Leav", "size": 3}, "here.name: no leaf 'Leav'; did you mean 'Leaf'?"),
        ({"name": "Stone"}, "here.name: no leaf 'Stone'; known: Leaf, big_leaf"),
        ({"name": ["Leaf"]}, "here.name: expected the name of a leaf, not ['Leaf']"),
        ({"name": {"a": 1}}, "here.name: expected the name of a leaf, not {'a': 1}"),
        ({"name": None}, "here: this leaf has no 'name'; known: Leaf, big_leaf"),
        ({"size": 3}, "here: this leaf has no 'name'; known: Leaf, big_leaf"),
        ("Leaf", "here: a leaf is a mapping with a 'name', not 'Leaf'"),
        (None, "here: a leaf is a mapping with a 'name', not None"),
    ],
)
def test_a_node_that_does_not_fit_is_refused_with_its_path(node, text):
    assert refusal(LEAVES, node) == text


@pytest.mark.parametrize(
    ("node", "text"),
    [
        ({"leaves": [LEAF, {**LEAF, "sise": 1}]}, "leaves.1.sise: Leaf takes no 'sise'; did you mean 'size'?"),
        ({"leaves": [LEAF, "Leaf"]}, "leaves.1: a leaf is a mapping with a 'name', not 'Leaf'"),
        ({"leaves": [], "top": {"name": "big_leaf", "rat": 1}}, "top.rat: big_leaf takes no 'rat'; did you mean"),
        ({"leaves": LEAF}, "leaves: Tree expects a list of mapping, not {'name': 'Leaf', 'size': 3}"),
        ({"leaves": [], "top": [LEAF]}, "top: Tree expects number or mapping, not [{'name': 'Leaf', 'size': 3}]"),
        ({"leaves": [], "top": "Leaf"}, "top: Tree expects number or mapping, not 'Leaf'"),
    ],
)
def test_nodes_inside_nodes_are_checked(node, text):
    assert refusal(TREES, node, path="").startswith(text)


def test_the_same_nodes_are_built_inside_out():
    tree = TREES.build({"leaves": [LEAF, {"name": "big_leaf"}], "top": {"name": "Leaf", "size": 1}, "label": {"a": 1}})
    assert [leaf.size for leaf in tree.leaves] == [3, 9]
    assert (tree.top.size, tree.label) == (1, {"a": 1})


def test_a_number_may_stand_where_a_node_may():
    assert TREES.build({"leaves": [], "top": 2}).top == 2


def test_a_preset_fills_in_what_the_node_leaves_out():
    built = LEAVES.build({"name": "big_leaf", "rate": 0.1})
    assert (built.size, built.rate) == (9, 0.1)
    assert LEAVES.build({"name": "big_leaf"}).rate == 0.9  # the one before changed nothing


def test_runtime_arguments_reach_every_node_that_takes_them():
    tree = TREES.build({"leaves": [LEAF]}, seed=7, unknown_to_all=8)
    assert (tree.seed, tree.leaves[0].seed) == (7, 7)


def test_building_changes_nothing_in_the_node():
    node = {"name": "Tree", "leaves": [{**LEAF, "veins": ["a"]}]}
    before = copy.deepcopy(node)
    TREES.build(node, seed=1)
    assert node == before


def test_a_value_out_of_range_gets_the_path_of_the_key_that_the_message_names():
    with pytest.raises(ConfigError, match=r"^tree\.leaves\.1\.size: size must not be negative, but is -1$"):
        TREES.build({"leaves": [LEAF, {**LEAF, "size": -1}]}, "tree")


FULL_LEAF = {"name": "Leaf", "size": 3, "rate": 0.5, "veins": None}


@pytest.mark.parametrize(
    ("registry", "node", "expected"),
    [
        (LEAVES, LEAF, FULL_LEAF),
        (LEAVES, {**LEAF, "rate": 0.1}, {**FULL_LEAF, "rate": 0.1}),
        (LEAVES, {"name": "big_leaf"}, {"name": "big_leaf", "size": 9, "rate": 0.9, "veins": None}),
        (TREES, {"leaves": [LEAF]}, {"name": "Tree", "leaves": [FULL_LEAF], "top": 1.0, "label": None}),
        (TREES, {"leaves": [], "top": LEAF}, {"name": "Tree", "leaves": [], "top": FULL_LEAF, "label": None}),
        (LEAVES, {"name": "twig"}, {"name": "twig"}),
        (LEAVES, {"name": ["Leaf"]}, {"name": ["Leaf"]}),
        (TREES, None, None),
        (TREES, {"leaves": [7]}, {"name": "Tree", "leaves": [7], "top": 1.0, "label": None}),
    ],
)
def test_defaults_are_filled_in_at_every_depth_and_what_is_no_node_stays(registry, node, expected):
    assert registry.filled(node) == expected == registry.filled(expected)


def test_a_bug_in_a_constructor_stays_a_traceback():
    def broken(size: int):
        raise TypeError("a bug")

    registry = Registry("thing")
    registry.register(broken)
    with pytest.raises(TypeError, match="a bug"):
        registry.build({"name": "broken", "size": 1})


def test_an_unknown_name_is_refused_while_building_too():
    with pytest.raises(ConfigError, match="no leaf 'Laef'; did you mean 'Leaf'?"):
        LEAVES.build({"name": "Laef"})


def test_a_name_is_registered_once():
    registry = Registry("leaf")
    assert registry.register(Leaf) is Leaf
    with pytest.raises(KeyError, match="leaf 'Leaf' is registered twice"):
        registry.register(Leaf)


keys = st.sampled_from(["size", "rate", "veins", "seed", "sise", "self"])
values = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.text() | st.integers()))


@given(st.sampled_from(["Leaf", "big_leaf"]), st.dictionaries(keys, values))
def test_what_passes_the_check_can_be_given_to_the_constructor(name, arguments):
    try:
        LEAVES.check({"name": name, **arguments}, "")
    except ConfigError:
        return
    try:
        LEAVES.build({"name": name, **arguments})
    except ConfigError as error:
        assert "size must not be negative" in str(error)


@given(st.text(max_size=8), st.sets(st.text(min_size=1, max_size=8), min_size=1, max_size=5))
def test_nearest_names_a_known_word(word, known):
    text = nearest(word, known)
    assert any(text in (f"; did you mean '{name}'?", f"; known: {', '.join(sorted(known))}") for name in known)


@given(st.sampled_from([(registry, name) for registry in PROJECT.values() for name in registry]), st.data())
def test_a_name_with_one_letter_left_out_is_recognised(entry, data):
    registry, name = entry
    dropped = data.draw(st.integers(0, len(name) - 1))
    assert "did you mean '" in nearest(name[:dropped] + name[dropped + 1 :], registry)


# The constructors of the project.


@pytest.mark.parametrize(("kind", "name"), CONSTRUCTORS)
def test_every_argument_of_a_registered_constructor_has_a_type_that_a_file_can_meet(kind, name):
    schema = PROJECT[kind][name]
    for argument, parameter in schema.parameters.items():
        assert parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD, f"*{argument}: the signature is the schema"
        assert argument in schema.hints or argument in schema.runtime, f"{argument} has no annotation"
    assert set(schema.runtime) | set(schema.nodes) | set(schema.defaults) <= set(schema.parameters)


@pytest.mark.parametrize(("kind", "name"), CONSTRUCTORS)
def test_every_default_could_stand_in_a_file(kind, name):
    defaults = PROJECT[kind].filled({"name": name})
    needed = {key: None for key, parameter in PROJECT[kind][name].parameters.items() if key not in defaults}
    for key, value in json.loads(json.dumps(defaults)).items():
        if key not in (*needed, "name"):
            assert fits(value, PROJECT[kind][name].hints[key]), key


def test_all_fourteen_xcits_are_presets_of_one_class():
    presets = {name for name in every.BACKBONES if name.startswith("xcit_")}
    assert presets == set(VARIANTS) and len(presets) == 14
    assert {every.BACKBONES[name].make for name in presets} == {every.BACKBONES["XCiT"].make}


def test_the_sections_of_a_file_take_what_the_loader_takes():
    assert set(builder.LOADER.schema.known) == {"num_workers", "use_shared_memory", "prefetch_factor", "timeout"}
