"""A potential from its spec, for instance from the one that is saved beside a posterior."""

import json
from importlib import import_module
from inspect import signature

from bayespot.potentials.potential import INNER, Potential, add
from bayespot.typing import Spec

# Module and function that make a potential of each name; imported when asked for, because Flax takes its time.
_BUILDERS = {
    "bonded": ("bonded", "bonded"),
    "combination": ("combination", "combination"),
    "descriptor_mlp": ("descriptor_mlp", "from_constants"),
    "dimenet": ("dimenet", "dimenet"),
    "lennard_jones": ("classical", "lennard_jones"),
    "pair_spline": ("pair_spline", "pair_spline"),
    "repulsion": ("repulsion", "repulsion"),
    "scale_shift": ("scale_shift", "scale_shift"),
    "stillinger_weber": ("classical", "stillinger_weber"),
    "temperature_dependent": ("temperature_dependent", "at_reference"),
}


def build(spec: Spec | str) -> Potential:
    """Make a potential from ``Potential.spec``, also after a round trip through JSON.

    Args:
        spec: the ``name`` of a builder, and its arguments under their own names; potentials inside it are specs too.
            JSON is taken as it is, so that ``build(samples.spec)`` is the potential of saved samples.

    Raises:
        ValueError: for an unknown name, or arguments that the builder does not take.
    """
    arguments = dict(json.loads(spec or "{}") if isinstance(spec, str) else spec)
    name = arguments.pop("name", None)
    if name == "add":
        return add(*[build(part) for part in arguments.get("parts", ())])
    if name not in _BUILDERS:
        known = ", ".join(sorted([*_BUILDERS, "add"]))
        raise ValueError(f"The name in the spec of a potential must be one of {known}. Got {name!r}.")
    arguments |= {part: build(arguments[part]) for part in INNER if part in arguments}
    module, function = _BUILDERS[name]
    builder = getattr(import_module(f"bayespot.potentials.{module}"), function)
    try:
        signature(builder).bind(**arguments)
    except TypeError as error:
        expected = ", ".join(signature(builder).parameters)
        raise ValueError(f"The spec of {name!r} must hold {expected}. Got {', '.join(arguments)}: {error}.") from error
    return builder(**arguments)
