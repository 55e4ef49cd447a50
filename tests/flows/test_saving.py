"""A forecast that was interrupted, or is extended, is the one that was never interrupted, to the last bit."""

import json
import math
import signal

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from toys import digits

from thalweg.errors import InvalidInput, NonFinite, NumericalWarning, RunFolderError, SchemaError
from thalweg.flows import saving
from thalweg.flows.forecast import PROCESSES, central_flow
from thalweg.flows.reference import Euler
from thalweg.flows.saving import saved_progress
from thalweg.flows.settings import Settings
from thalweg.flows.stable import StableFlow
from thalweg.rules import Adam, GradientDescent, HeavyBall, RMSProp

ALL = ("discrete", "midpoint", "central", "stable")


def same(one, other):
    for name in one.data.variables:
        np.testing.assert_array_equal(one.data[name], other.data[name], err_msg=name)
    assert list(one.data.variables) == list(other.data.variables)
    assert one.processes == other.processes
    assert all(torch.equal(w, other.points[name]) for name, w in one.points.items())
    assert one.notes == other.notes


CASES = {
    "descent": (GradientDescent(lr=0.25), {"processes": (*ALL, "edge")}),
    "float32": (GradientDescent(lr=0.25), {"processes": (*ALL, "edge"), "dtype": torch.float32}),
    "rmsprop": (RMSProp(lr=1e-3, beta2=0.9, bias_correction=True), {"processes": ALL, "warm_start": 20, "time": 16}),
    "heavy ball": (HeavyBall(lr=0.12, momentum=0.5), {"processes": ALL[:3]}),
    "adam": (Adam(lr=5e-3), {"processes": ALL[:3], "warm_start": 5}),
    "flow": (GradientDescent(lr=0.25), {"processes": ALL[:3], "mode": "flow", "time": 20}),
    "reference": (
        GradientDescent(lr=0.4),
        {"processes": ALL, "mode": "reference", "settings": Euler(substeps=2), "warm_start": 4, "time": 12},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_twice_as_long_is_half_and_restart_and_half(case, tmp_path):
    rule, options = CASES[case]
    options = dict(options)
    problem = digits(options.pop("dtype", torch.float64), samples=60)
    time, path = options.pop("time", 50), tmp_path / "state.safetensors"
    norm = {"observables": {"norm": lambda w: w.norm()}}
    whole = central_flow(problem, rule, time, **options, **norm)
    # One less, as where it is cut must not matter: this is within a segment.
    half = central_flow(problem, rule, time // 2 - 1, **options, **norm, state_path=path)
    assert saved_progress(path)[0] == half.data.sizes["time"] == time // 2 - 1
    fresh = digits(problem.dtype, samples=60)
    again = central_flow(fresh, rule, time, **options, **norm, state_path=path, resume=True)
    same(whole, again)
    same(again, central_flow(fresh, rule, time, **options, **norm, state_path=path, resume=True))
    if case in ("descent", "rmsprop", "reference"):
        assert whole.data.critical.max() > 0, "it must oscillate for this to mean anything"


def test_a_stable_flow_that_ended_stays_ended(tmp_path):
    problem, rule, path = digits(torch.float64, samples=40), GradientDescent(lr=0.3), tmp_path / "s.safetensors"
    stiff = {"processes": ("discrete", "central", "stable")}
    step = StableFlow.step

    def short(self):
        if self.time == 4:
            raise NonFinite("It is stiff.")
        return step(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StableFlow, "step", short)
        whole = central_flow(problem, rule, 12, **stiff)
        central_flow(problem, rule, 6, **stiff, state_path=path)
        same(whole, central_flow(problem, rule, 12, **stiff, state_path=path, resume=True))
    assert whole.notes == ("The stable flow ended at time 4: It is stiff.",)
    assert math.isnan(whole.data.loss_stable.values[-1])


def test_what_differs_is_named(tmp_path):
    problem, path = digits(torch.float64, samples=40), tmp_path / "s.safetensors"
    rule, keep = GradientDescent(lr=0.1), {"state_path": path, "resume": True}
    central_flow(problem, rule, 4, **keep)
    for named, arguments, more in (
        ("rule.lr is 0.1 there and 0.2 now", (problem, GradientDescent(lr=0.2), 8), {}),
        ("rule.type", (problem, HeavyBall(lr=0.1), 8), {}),
        ("settings", (problem, rule, 8), {"settings": Settings(tolerance=1e-3)}),
        ("processes", (problem, rule, 8), {"processes": ("midpoint", "central")}),
        ("warm_start is 0 there and 2 now", (problem, rule, 8), {"warm_start": 2}),
        ("observables", (problem, rule, 8), {"observables": {"norm": lambda w: w.norm()}}),
        ("mode", (problem, rule, 8), {"mode": "reference"}),
        ("start.weights", (problem, rule, 8), {"w": problem.initial + 1e-9}),
        ("problem.dtype", (digits(samples=40), rule, 8), {}),
        ("fingerprint.data", (digits(torch.float64, samples=40, noise=0.5), rule, 8), {}),
        ("extended, never shortened", (problem, rule, 3), {}),
    ):
        with pytest.raises(InvalidInput, match=named):
            central_flow(*arguments, **keep, **more)
    assert saved_progress(path)[0] == 4
    with pytest.raises(InvalidInput, match="save_every"):
        central_flow(problem, rule, 8, **keep, save_every=0)
    with pytest.raises(InvalidInput, match="state_path"):
        central_flow(problem, rule, 8, resume=True)


def test_another_environment_is_told(tmp_path, monkeypatch):
    problem, path = digits(torch.float64, samples=40), tmp_path / "s.safetensors"
    central_flow(problem, GradientDescent(lr=0.1), 2, state_path=path)
    monkeypatch.setattr(saving, "package_versions", lambda: {"torch": "0.1"})
    with pytest.warns(NumericalWarning, match="packages"):
        central_flow(problem, GradientDescent(lr=0.1), 4, state_path=path, resume=True)


def test_damage_and_newer_files_are_refused(tmp_path):
    problem, rule, path = digits(torch.float64, samples=40), GradientDescent(lr=0.1), tmp_path / "s.safetensors"

    def go_on():
        return central_flow(problem, rule, 4, state_path=path, resume=True)

    central_flow(problem, rule, 2, state_path=path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunFolderError, match="safetensors"):
        go_on()
    path.write_bytes(whole)
    with safe_open(path, "pt") as handle:
        note = json.loads(handle.metadata()["note"])
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    save_file(tensors, path, {"note": json.dumps(note | {"schema": 99})})
    with pytest.raises(SchemaError, match="99"):
        go_on()
    save_file({k: t for k, t in tensors.items() if k != "rows/values"}, path, {"note": json.dumps(note)})
    with pytest.raises(RunFolderError, match="rows/values"):
        go_on()
    save_file(tensors, path, {"note": "{}"})
    with pytest.raises(RunFolderError, match="no saved forecast"):
        go_on()
    path.write_bytes(whole)
    assert go_on().data.sizes["time"] == 4


def test_ctrl_c_ends_the_unit_and_saves(tmp_path):
    problem, rule, path = digits(torch.float64, samples=40), GradientDescent(lr=0.3), tmp_path / "s.safetensors"

    class Presses:
        def init(self, steps, start=0):
            self.start = start

        def step(self, values):
            if values["step"] == 7:
                signal.raise_signal(signal.SIGINT)

        def close(self):
            pass

    with pytest.raises(KeyboardInterrupt):
        central_flow(problem, rule, 20, state_path=path, meter=Presses())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert saved_progress(path)[0] == 7
    meter = Presses()
    again = central_flow(problem, rule, 20, state_path=path, resume=True, meter=meter)
    assert meter.start == 7
    same(again, central_flow(problem, rule, 20))


def test_saving_takes_place_as_often_as_asked(tmp_path, monkeypatch):
    problem, path, seen = digits(torch.float64, samples=40), tmp_path / "new" / "s.safetensors", []
    write = saving.write_tensors

    def count(target, tensors, note):
        seen.append(json.loads(note)["time"])
        write(target, tensors, note)

    monkeypatch.setattr(saving, "write_tensors", count)
    central_flow(problem, GradientDescent(lr=0.1), 8, state_path=path, save_every=3)
    assert seen == [3, 6, 8]
    assert [p.name for p in path.parent.iterdir()] == ["s.safetensors"]
    assert set(PROCESSES) >= set(ALL)
