"""A potential from its spec, for instance from the one that is saved beside a posterior."""

from importlib import import_module
from inspect import signature

from bayespot.potentials.potential import Potential, add
from bayespot.potentials.scale_shift import scale_shift
from bayespot.typing import Spec

# Builders of potentials that are not made from other potentials, by name; each function has its own name in its module.
_MODULES = {
    "descriptor_mlp": "bayespot.potentials.descriptor_mlp",
    "dimenet": "bayespot.potentials.dimenet",
    "lennard_jones": "bayespot.potentials.classical",
    "repulsion": "bayespot.potentials.repulsion",
    "stillinger_weber": "bayespot.potentials.classical",
}
KNOWN = tuple(sorted([*_MODULES, "add", "scale_shift"]))
"""Names that ``build`` understands."""


def build(spec: Spec) -> Potential:
    """Make a potential from ``Potential.spec``, also after a round trip through JSON.

    Args:
        spec: the ``name`` of a builder, and its arguments under their own names.

    Raises:
        ValueError: for an unknown name, or arguments that the builder does not take.
    """
    name = spec.get("name")
    arguments = {key: value for key, value in spec.items() if key != "name"}
    if name not in KNOWN:
        raise ValueError(f"The spec's name must be one of {', '.join(KNOWN)}. Got {name!r}.")
    try:
        if name == "add":
            (parts,) = (arguments.pop("parts"),)
            parts = [build(part) for part in parts]
            return add(*parts, **arguments)
        if name == "scale_shift":
            return scale_shift(build(arguments.pop("potential")), **arguments)
    except KeyError as error:
        raise ValueError(f"The spec of {name!r} needs the entry {error}. Got {sorted(arguments)}.") from error
    builder = getattr(import_module(_MODULES[name]), name)
    try:
        signature(builder).bind(**arguments)
    except TypeError as error:
        raise ValueError(f"The spec of {name!r} must hold the arguments {signature(builder)}: {error}.") from error
    return builder(**arguments)
