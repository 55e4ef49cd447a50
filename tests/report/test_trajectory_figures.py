"""The figures of a trajectory map show its values, stay small, and hatch what rounding rules."""

import json

import numpy as np
import pytest
from trajectories_to_draw import line, mapped, walk

from thalweg.report.shell import figure_section
from thalweg.report.trajectory_figures import (
    angle_figure,
    beyond_figure,
    groups_figure,
    length_figure,
    map_figure,
    path_figure,
)
from thalweg.trajectories.figure import chosen, unpacked
from thalweg.trajectories.nulls import Decay, nulls_for

ALL = (map_figure, beyond_figure, groups_figure, length_figure, angle_figure, path_figure)


@pytest.fixture(scope="module")
def layered():
    return mapped({f"layers.{i}.w": walk(40, 300, 1 + i / 4, i) for i in range(6)}, groups="layer")


def test_the_map_has_every_group_behind_a_selector_and_the_null_in_its_hover(layered):
    figure = map_figure(layered)
    np.testing.assert_allclose(unpacked(figure.data[0].z), layered.similarity, atol=1e-6)
    null = nulls_for(layered.path())["walk"].similarity
    np.testing.assert_allclose(unpacked(figure.data[0].customdata), null, atol=1e-6)
    assert "random walk" in figure.data[0].hovertemplate
    assert [trace.visible for trace in figure.data] == [True] + [False] * 6
    buttons = figure.layout.updatemenus[0].buttons
    assert [button.label for button in buttons] == list(layered.groups)
    assert list(buttons[3].args[0]["visible"]).index(True) == 3
    decayed = mapped(walk(), decay=Decay(0.1, learning_rate=0.01))
    assert "decay null" in map_figure(decayed).data[0].hovertemplate


def test_steps_are_those_of_the_checkpoints(layered):
    assert map_figure(layered).data[0].x[:3] == ("0", "100", "200")
    assert chosen(154, 64)[[0, -1]].tolist() == [0, 153]


def test_small_multiples_are_one_picture_with_every_map_in_its_place(layered):
    figure = groups_figure(layered)
    assert len(figure.data) == 1
    field = unpacked(figure.data[0].z)
    for note, group in zip(figure.layout.annotations, layered.groups[1:]):
        at = chosen(40, 48)
        left, top = int(note.x - len(at) / 2), int(note.y + 0.5)
        assert note.text.startswith(group)
        np.testing.assert_allclose(
            field[top : top + len(at), left : left + len(at)], layered.path(group).similarity[np.ix_(at, at)], atol=1e-6
        )
    assert not groups_figure(mapped(walk())).data


def test_a_walk_is_nothing_beyond_a_walk(layered):
    figure = beyond_figure(mapped(walk(size=20_000)))
    for trace in figure.data[:2]:
        assert np.nanmax(np.abs(unpacked(trace.z))) < 0.05
    assert np.nanmax(unpacked(beyond_figure(mapped(line())).data[1].z)) > 0.4


def test_updates_below_the_precision_floor_are_hatched():
    rounded, exact = mapped(walk(spread=1e-3), quantum=1e-3), mapped(walk(spread=1e-3))
    assert any(trace.name == "below the precision floor" for trace in beyond_figure(rounded).data)
    assert any(trace.name == "below the precision floor" for trace in length_figure(rounded).data)
    for draw in (beyond_figure, length_figure, angle_figure):
        assert not any(trace.name == "below the precision floor" for trace in draw(exact).data)


def test_the_path_tells_how_far_each_checkpoint_is_from_its_plane(layered):
    figure = path_figure(layered)
    own = layered.complexity().principal
    np.testing.assert_allclose(figure.data[1].x, own.coordinates[:, 0], rtol=1e-4)
    np.testing.assert_allclose(figure.data[1].marker.color, own.residual / own.distance, atol=1e-3)
    assert f"{own.explained[0]:.1%}" in figure.layout.xaxis.title.text


def test_every_figure_goes_into_a_page_and_holds_no_nan_outside_packed_numbers(layered):
    for found in (layered, mapped(walk(count=3)), mapped(walk(spread=1e-3), quantum=1e-3)):
        for draw in ALL:
            figure = draw(found)
            section = figure_section("x", "title", "see", "", figure)
            if not figure.data:
                assert section == ""
                continue
            spec = section.split('id="fx">')[1].split("</script>")[0]
            json.loads(spec, parse_constant=pytest.fail)
            assert all(trace.name for trace in figure.data)


def test_a_map_of_154_checkpoints_and_40_layers_stays_small():
    steps = [0, *(2**i for i in range(10)), *range(1000, 144_000, 1000)]
    found = mapped({f"layers.{i}.w": walk(154, 50, 1.0, i) for i in range(40)}, groups="layer", steps=steps)
    assert len(steps) == 154
    size = sum(len(figure_section("x", "title", "see", "", draw(found))) for draw in ALL)
    assert size < 4e6  # with the library that draws it, which every page has once, below 9 MB
