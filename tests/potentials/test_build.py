"""Rebuilding potentials from their specs: messages (the round trip itself is a contract test of every potential)."""

import json

import pytest

from bayespot.potentials.build import build


def test_nested_specs():
    part = {"name": "repulsion", "cutoff": 2.0}
    shifted = {"name": "scale_shift", "potential": part, "scale": 2.0, "shift": {"14": -1.0}}
    potential = build({"name": "add", "parts": [shifted, {"name": "stillinger_weber", "species": 14}]})
    assert potential.species == (14,)
    assert potential.cutoff == pytest.approx(1.8 * 2.0951)
    assert potential.spec["parts"][0] == shifted
    assert build(json.dumps(potential.spec)).spec == potential.spec


@pytest.mark.parametrize("spec", [{"name": "dimnet"}, {}, {"name": "add", "parts": [{"name": "unheard of"}]}])
def test_unknown_names_are_refused_with_the_known_ones(spec):
    with pytest.raises(ValueError, match="add, bonded, combination, descriptor_mlp, dimenet, lennard_jones"):
        build(spec)


@pytest.mark.parametrize("arguments", [{}, {"cutoff": 2.0, "colour": "red"}])
def test_wrong_arguments_are_refused_with_the_right_ones(arguments):
    with pytest.raises(ValueError, match=r"'repulsion' must hold cutoff"):
        build({"name": "repulsion", **arguments})


def test_the_spec_is_not_changed():
    spec = {"name": "repulsion", "cutoff": 2.0}
    build(spec)
    assert spec == {"name": "repulsion", "cutoff": 2.0}
