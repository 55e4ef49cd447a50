import numpy as np
import pytest
import xarray as xr

from thalweg.errors import InvalidInput, RunFolderError, SchemaError, StorageError
from thalweg.runs.analyses import SCHEMA, analyses, read_analysis, write_analysis


def example():
    named = {"units": "loss / weight^2", "long_name": "Spur, größer als λ²"}
    return xr.Dataset(
        {"trace": ("layer", np.array([1.5, np.nan]), named), "end": ("layer", np.array([1, -1], np.int8), named)},
        coords={"layer": ("layer", np.array(["0.weight", "λ.bias"]), named)},
    )


def test_what_is_written_is_read(tmp_path):
    data = example().assign_attrs(nothing=None)
    file = write_analysis(tmp_path / "analyses" / "spectrum-7.nc", data, "spectrum", {"ok": True, "none": None})
    got = read_analysis(file, "spectrum")
    np.testing.assert_array_equal(got.trace.values, [1.5, np.nan])
    assert got.end.values.tolist() == [1, -1]
    assert got.layer.values.tolist() == ["0.weight", "λ.bias"]
    assert got.trace.attrs == example().trace.attrs
    assert (got.attrs["kind"], got.attrs["schema"], got.attrs["ok"]) == ("spectrum", SCHEMA, "yes")
    assert got.attrs["thalweg"]
    assert not {"none", "nothing"} & set(got.attrs)


def test_plain_xarray_opens_it(tmp_path):
    file = write_analysis(tmp_path / "x-1.nc", example(), "x")
    with xr.open_dataset(file, engine="scipy") as data:
        assert data.trace.attrs["units"] == "loss / weight^2"


def test_every_number_has_units_and_a_name(tmp_path):
    with pytest.raises(InvalidInput, match="'trace' has no units"):
        write_analysis(tmp_path / "x-1.nc", xr.Dataset({"trace": 1.0}), "x")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    file = write_analysis(tmp_path / "x-1.nc", example(), "x")
    before = file.read_bytes()

    def breaks(self, path, **options):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(xr.Dataset, "to_netcdf", breaks)
    with pytest.raises(StorageError, match="No space left"):
        write_analysis(file, example(), "x")
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x-1.nc"]


@pytest.mark.parametrize("damage", ["half", "empty", "text", "missing", "header"])
def test_damage_is_told(tmp_path, damage):
    file = write_analysis(tmp_path / "x-1.nc", example(), "x")
    whole = file.read_bytes()
    bad = {
        "half": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"not netCDF",
        "header": whole[:8] + b"\xff" * 8 + whole[16:],
    }
    file.write_bytes(bad.get(damage, whole))
    if damage == "missing":
        file.unlink()
    with pytest.raises(RunFolderError, match=r"x-1.nc cannot be read.*run the analysis again"):
        read_analysis(file, "x")


def test_another_kind_and_a_newer_schema_are_refused(tmp_path):
    file = write_analysis(tmp_path / "x-1.nc", example(), "x")
    with pytest.raises(RunFolderError, match="of the kind 'spectrum'"):
        read_analysis(file, "spectrum")
    newer = read_analysis(file, "x").assign_attrs(schema=SCHEMA + 1)
    newer.to_netcdf(file, engine="scipy", format="NETCDF3_64BIT")
    with pytest.raises(SchemaError, match="Upgrade thalweg"):
        read_analysis(file, "x")


def test_files_are_listed_by_step_and_links_out_are_refused(tmp_path):
    run = tmp_path / "run"
    (run / "analyses").mkdir(parents=True)
    for step in (100, 20):
        write_analysis(run / "analyses" / f"spectrum-{step}.nc", example(), "spectrum")
    write_analysis(run / "analyses" / "spectrum-fisher-3.nc", example(), "spectrum")
    assert [step for step, _ in analyses(run, "spectrum")] == [20, 100]
    outside = write_analysis(tmp_path / "y-1.nc", example(), "spectrum")
    (run / "analyses" / "spectrum-5.nc").symlink_to(outside)
    with pytest.raises(RunFolderError, match="leads out of the run folder"):
        analyses(run, "spectrum")
