"""Posterior samples: slicing, weights, files without pickle."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bayespot.errors import DataError, FailedSamples, Status
from bayespot.io import load, save
from bayespot.records.posterior import PosteriorSamples, check_spec, concatenate, healthy, weights
from bayespot.tree import replace

SPEC = json.dumps({"name": "descriptor_mlp", "cutoff": 5.0, "species": [14], "note": 'Å/µ "quoted"'})


def make(chains=2, draws=3, seed=0) -> PosteriorSamples:
    """Samples whose every number tells where it belongs."""
    s = chains * draws
    rng = np.random.default_rng(seed)
    return PosteriorSamples(
        params={
            "potential": {"layer": {"kernel": jnp.asarray(rng.normal(size=(s, 4, 2))), "bias": jnp.zeros((s, 2))}},
            "noise": {"energy": jnp.arange(s) + 0.5, "forces": jnp.asarray(rng.normal(size=s))},
        },
        log_weight=jnp.zeros(s),
        chain=jnp.repeat(jnp.arange(chains, dtype=jnp.int32), draws),
        draw=jnp.tile(jnp.arange(draws, dtype=jnp.int32), chains),
        log_density=jnp.arange(s) * 10.0,
        status=jnp.zeros(s, jnp.int32),
        history={"loss": jnp.asarray(rng.normal(size=(s, 7)))},
        spec=SPEC,
    )


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_indexing_and_length():
    samples = make()
    assert len(samples) == 6
    assert samples[2:4].log_density.tolist() == [20, 30]
    assert samples[jnp.array([5, 0])].params["noise"]["energy"].tolist() == [5.5, 0.5]
    assert samples[np.asarray(samples.chain) == 1].draw.tolist() == [0, 1, 2]
    assert samples[-1].log_density.tolist() == [50]
    assert samples[1].params["potential"]["layer"]["kernel"].shape == (1, 4, 2)
    assert len(list(samples)) == 6
    with pytest.raises(IndexError, match="6 samples"):
        samples[6]


def test_vmap_over_samples():
    samples = make()
    out = jax.vmap(lambda one: one.params["noise"]["energy"] + one.log_density)(samples)
    np.testing.assert_array_equal(out, np.arange(6) * 11 + 0.5)


def test_repr():
    samples = replace(make(), status=jnp.array([0, 0, 2, 0, 2, 3]))
    assert repr(samples) == "PosteriorSamples(6 samples from 2 chains, 12 parameters each, 3 OK, 2 UNSTABLE, 1 LOW_ESS)"
    assert "params" in repr(jax.tree.map(lambda x: None, samples))  # trees of anything have the same form
    jax.jit(lambda s: repr(s) and s.log_weight)(samples)


def test_weights():
    log_weight = jnp.log(jnp.array([1.0, 2.0, 5.0])) + 5000.0  # would overflow without a shift
    np.testing.assert_allclose(weights(replace(make(1, 3), log_weight=log_weight)), [1 / 8, 2 / 8, 5 / 8], rtol=1e-11)
    np.testing.assert_allclose(weights(make()), np.full(6, 1 / 6), rtol=1e-15)
    some = weights(replace(make(1, 3), log_weight=jnp.array([0.0, -jnp.inf, 0.0])))
    assert some.tolist() == [0.5, 0.0, 0.5]


@pytest.mark.parametrize("bad", [[0.0, np.nan, 0.0], [0.0, np.inf, 0.0], [-np.inf] * 3])
def test_weights_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="Log weights must be"):
        weights(replace(make(1, 3), log_weight=jnp.array(bad)))


def test_healthy():
    samples = replace(make(), status=jnp.array([0, 2, 0, 3, 0, 1], jnp.int32))
    assert healthy(samples).log_density.tolist() == [0, 20, 40]
    with pytest.raises(FailedSamples, match="2 UNSTABLE") as caught:
        healthy(replace(make(1, 2), status=jnp.full(2, Status.UNSTABLE)))
    assert caught.value.samples == (0, 1)


def test_samples_know_their_potential():
    own = {"name": "add", "parts": [{"name": "a", "cutoff": 5.0, "species": (14, 8)}, {"name": "b", "shift": None}]}
    samples = replace(make(), spec=json.dumps(own))
    check_spec(samples, own)  # a tuple is a list in JSON
    check_spec(replace(samples, spec=""), own)
    check_spec(replace(samples, spec="{}"), own)
    for change in ({"name": "b", "shift": 0.5}, {"name": "c", "shift": None}, {"name": "b", "shift": None, "x": 1}):
        with pytest.raises(ValueError, match="must belong to the potential"):
            check_spec(samples, own | {"parts": [own["parts"][0], change]})
    with pytest.raises(ValueError, match=r"14 and 22 for \['parts'\]\[0\]\['species'\]\[0\]"):
        check_spec(samples, own | {"parts": [own["parts"][0] | {"species": (22, 8)}, own["parts"][1]]})


def test_concatenate_renumbers_chains():
    both = concatenate([make(2, 3), make(1, 2, seed=1), make(2, 3)[3:]])
    assert both.chain.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert both.chain.dtype == jnp.int32
    assert both.draw.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 0, 1, 2]
    assert_same(both[:6], make(2, 3))


def test_concatenate_refuses_what_does_not_fit():
    one = make()
    with pytest.raises(ValueError, match="at least one"):
        concatenate([])
    with pytest.raises(ValueError, match="same potential"):
        concatenate([one, replace(one, spec="{}")])
    with pytest.raises(ValueError, match=r"\(7,\).*\(3,\).*loss.*history=\{\}"):
        concatenate([one, replace(one, history={"loss": one.history["loss"][:, :3]})])
    with pytest.raises(ValueError, match=r"None.*forces"):
        concatenate([one, replace(one, params={**one.params, "noise": {"energy": one.params["noise"]["energy"]}})])
    with pytest.raises(ValueError, match=r"float32.*log_density"):
        concatenate([one, replace(one, log_density=one.log_density.astype(jnp.float32))])


def test_round_trip(tmp_path):
    path = tmp_path / "new folder" / "samples.safetensors"
    save(make(), path)
    back = load(path)
    assert_same(back, make())
    assert back.spec == SPEC
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(back))


def test_awkward_names_and_types_round_trip(tmp_path):
    """Names with separators, clashes after joining, empty dictionaries, and every kind of number."""
    params = {
        "potential": {
            "a.b": {"c": jnp.ones((2, 1))},
            "a": {"b.c": jnp.zeros((2, 1)), "b": {"c": jnp.full((2, 1), 2.0)}},
            "": {"/": jnp.arange(2), "ü \n\"'[0]": jnp.arange(2, dtype=jnp.int8)},
            "0": {},
            "__metadata__": jnp.ones(2, bool),
            "half": jnp.array([1.5, -0.0], jnp.float16),
            "brain": jnp.array([[1.5], [jnp.nan]], jnp.bfloat16),
            "single": jnp.array([1e-40, jnp.inf], jnp.float32),
            "complex": jnp.array([1 + 2j, 3.0]).astype(jnp.complex64),
            "nested": [jnp.ones((2, 0)), (jnp.ones((2, 2)).T, None)],
        },
        "noise": {},
    }
    samples = replace(make(1, 2), params=params, history={})
    save(samples, tmp_path / "s")
    assert_same(load(tmp_path / "s"), samples)


def test_arrays_are_written_in_their_own_order(tmp_path):
    """A transposed view of numpy does not lie in memory as it reads."""
    turned = np.arange(12.0).reshape(2, 6).T
    samples = replace(make(), history={"loss": turned})
    save(samples, tmp_path / "s")
    np.testing.assert_array_equal(load(tmp_path / "s").history["loss"], turned)


def test_the_file_holds_no_pickle_and_others_can_read_it(tmp_path):
    save(make(), tmp_path / "s")
    arrays = load_file(tmp_path / "s")
    assert any(np.array_equal(a, make().params["noise"]["energy"]) for a in arrays.values())
    assert b"pickle" not in (tmp_path / "s").read_bytes()


def test_saving_replaces_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / "s"
    save(make(), path)
    save(make(1, 2), path)
    assert len(load(path)) == 2

    def fail(*names):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save(make(), path)
    assert len(load(path)) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_what_cannot_be_saved_is_refused(tmp_path):
    for params, words in (
        ({1: jnp.ones(6)}, "must be text"),
        ({"a": "text"}, "str in"),
        ({"a": jax.random.key(0)}, "in"),
    ):
        with pytest.raises(ValueError, match=words):
            save(replace(make(), params=params), tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_bad_files_are_refused(tmp_path):
    path = tmp_path / "s"
    with pytest.raises(DataError, match=r"s: there is no such file"):
        load(path)
    path.write_bytes(b"not samples at all")
    with pytest.raises(DataError, match="not a whole safetensors file"):
        load(path)
    save(make(), path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match="not a whole safetensors file"):
        load(path)
    save_file({"x": np.ones(2)}, path)
    with pytest.raises(DataError, match="not written by bayespot"):
        load(path)


def test_a_newer_version_asks_for_an_upgrade(tmp_path):
    """The version is looked at before anything else, whose form a newer version may have changed."""
    save_file({"x": np.ones(2)}, tmp_path / "s", metadata={"bayespot": json.dumps({"format_version": 99, "other": 1})})
    with pytest.raises(DataError, match=r"format version 99, this bayespot reads up to 1\. Upgrade bayespot"):
        load(tmp_path / "s")
