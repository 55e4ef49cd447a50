"""Two real processes over gloo, launched by torchrun: products, solvers and errors against one process."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cases
from thalweg.spectra import top_eigenpairs

ROOT = Path(__file__).parent.parent.parent
EXACT, DIFFERENCES = 1e-12, 1e-6
PATIENT = ("--timeout", "500")
SOLVED = ("double_backward", "double_backward once", "linearised", "linearised once")


def torchrun(*arguments, processes=2, timeout=540):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, timeout=timeout, env=environment, check=False
    )


def launch(group, folder):
    path = folder / "results.json"
    done = torchrun(Path(__file__).parent / "distributed_worker.py", group, path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def core(tmp_path_factory):
    return launch("core", tmp_path_factory.mktemp("core"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return launch("all", tmp_path_factory.mktemp("all"))


def assert_replicated(results, name):
    for found in results:
        assert max(found[key] for key in ("product", "block", "value", "value alone", "gradient")) < EXACT
        assert found["samples"] == cases.make(name).problem().samples
        assert found["counted"] == 4
    assert results[0]["bits"] == results[1]["bits"]
    assert results[0]["share"] < results[1]["share"], "the case is ragged"
    assert sum(found["share"] for found in results) == pytest.approx(1.0, abs=1e-15)


def assert_sharded(results, name):
    dimension = cases.make(name).problem().dimension
    for found in results:
        assert max(found[key] for key in ("value", "value alone", "gradient", *SOLVED)) < EXACT
        assert max(found["difference"], found["difference once"]) < DIFFERENCES
        assert found["initial"] == 0.0
        assert found["dimension"] == dimension
        assert found["samples"] == cases.make(name).problem().samples
        assert found["untouched"]
    assert sum(found["length"] for found in results) == dimension


class TestCore:
    """One launch of a few seconds."""

    def test_data_parallel_products(self, core):
        assert_replicated(core["data_parallel_product"], "mlp_ce")

    def test_one_all_reduce_each_and_nothing_else(self, core):
        for found in core["one_all_reduce_each"]:
            assert set(found) == {"product", "block", "value", "value and gradient"}
            assert all(calls == ["all_reduce"] for calls in found.values())

    def test_solvers_agree_bit_for_bit(self, core):
        one, other = core["data_parallel_solver"]
        assert one == other
        assert one["error"] < EXACT
        assert one["residual"] < 1e-6

    def test_a_failing_process_tells_the_others(self, core):
        well, failed = core["a_failing_process_tells_the_others"]
        for key in ("product", "value"):
            assert failed[key] == "ZeroDivisionError: on purpose"
            assert well[key].startswith("DistributedError: 1 of 2 processes failed")
        assert max(well["afterwards"], failed["afterwards"]) < EXACT

    def test_processes_that_differ_are_told(self, core):
        for found in core["different_vectors_are_noticed"]:
            assert "different vectors" in found["product"]
            assert "different vectors" in found["value"]
            assert "different vectors" in found["permuted"]
            assert "Processes [1] differ from process 0 in w" in found["hessian"]

    def test_sharded_products(self, core):
        assert_sharded(core["sharded_product"], "mlp_ce")

    def test_solvers_on_pieces(self, core):
        one, other = core["sharded_solvers"]
        assert one["bits"] == other["bits"]
        for found in (one, other):
            assert max(found["error"], found["block error"], found["orthonormal"]) < EXACT
            assert found["residual"] < 1e-6
        assert one["length"] + other["length"] == cases.make("mlp_ce").problem().dimension


@pytest.mark.slow
class TestEverything:
    @pytest.mark.parametrize("name", [n for n in cases.NAMES if n != "batch_norm_train"])
    def test_cases(self, whole, name):
        assert_replicated([found[name] for found in whole["every_case_replicated"]], name)
        assert_sharded([found[name] for found in whole["every_case_sharded"]], name)

    def test_wrapped_in_ddp_and_other_operators(self, whole):
        for found in whole["ddp_and_operators"]:
            assert max(found[key] for key in ("unwrapped", "unwrapped by hand", "lifted", "counted")) < EXACT
            assert found["names"]
            assert found["difference"] < DIFFERENCES
            assert "Pass samples=problem.samples" in found["uncounted"]
            assert "the size of the operator" in found["sizes"]

    @pytest.mark.parametrize(
        ("key", "text"),
        [
            ("weights", "differ from process 0 in the model's parameters or buffers"),
            ("buffers", "differ from process 0 in the model's parameters or buffers"),
            ("shapes", "differ from process 0 in the layout of w"),
            ("one cannot build", "InvalidInput: The vector has shape"),
            ("sharded shapes", "differ from process 0 in the layout of w"),
            ("sharded buffers", "differ from process 0 in the model's buffers"),
        ],
    )
    def test_models_that_differ(self, whole, key, text):
        assert all(text in found[key] for found in whole["different_models_are_noticed"])

    def test_other_placements_and_parts(self, whole):
        for found in whole["other_placements"]:
            assert max(found["mixed"], found["part"]) < EXACT
            assert max(found["difference"], found["part by differences"]) < DIFFERENCES

    def test_graphs_hold_no_whole_parameter(self, whole):
        for found in whole["graphs_hold_pieces"]:
            assert found["whole graph"] < found["parameter"] / 4
            assert found["parameter"] < found["P"]

    def test_a_root_that_was_left_gathered(self, whole):
        assert all(found["error"] < EXACT for found in whole["a_root_that_was_left_gathered"])

    def test_gradients_and_the_users_hooks_stay(self, whole):
        for found in whole["gradients_and_hooks_stay"]:
            assert found == {"same": True, "user's hook called": True, "trains on": "nothing"}

    @pytest.mark.parametrize(
        ("key", "text"),
        [
            ("half precision", "DistributedError: The loss without the sharding's hooks is"),
            ("scaled gradients", "DistributedError: A product differs from a difference of gradients"),
            ("penalty", r"gave nan and nan.*adds up model.parameters"),
            ("dropout", "DistributedError: Two evaluations of the sharded loss"),
            ("whole vector", r"gathered\(operator\), which takes whole vectors of length 44"),
            ("whole point", "InvalidInput: The vector has shape .44,.*Pass a piece"),
            ("layout", "Choose among double_backward, linearised, difference"),
            ("plain problem", "Use thalweg.operators.sharded.ShardedProblem"),
            ("lift", "already sums over all samples"),
            ("dense", "InvalidInput"),
        ],
    )
    def test_what_cannot_be_right_is_refused(self, whole, key, text):
        for found in whole["what_cannot_be_right_is_refused"]:
            assert re.search(text, found[key]), found[key]

    def test_losses_without_a_second_derivative(self, whole):
        for found in whole["no_second_derivative"]:
            assert found["exact"].startswith("NotDifferentiable")
            assert 'layout="difference"' in found["exact"]
            assert found["difference"] < DIFFERENCES


EXAMPLE = ROOT / "examples" / "distributed" / "sharpness.py"


def numbers(done):
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    lines = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.strip()}
    return float(lines["loss"][0]), torch.tensor([float(v) for v in lines["eigenvalues"]], dtype=torch.float64)


def by_one_process():
    """The example's own model and samples, on this process alone."""
    namespace = {}
    source = EXAMPLE.read_text().split("def main()")[0]
    exec(compile(source, str(EXAMPLE), "exec"), namespace)
    with torch.random.fork_rng():
        model, loss, x, y = namespace["make"](0, 101)
    from thalweg.operators import hessian
    from thalweg.problem import Problem

    problem = Problem(model, loss, (x, y))
    return float(problem.value(problem.initial)), top_eigenpairs(hessian(problem), k=3).values


@pytest.mark.slow
class TestExample:
    @pytest.mark.parametrize(
        ("options", "tolerance"),
        [((), EXACT), (("--shard",), EXACT), (("--shard", "--layout", "difference"), DIFFERENCES)],
        ids=["data parallel", "sharded", "differences"],
    )
    def test_two_processes_give_what_one_gives(self, options, tolerance):
        value, eigenvalues = numbers(torchrun(EXAMPLE, *PATIENT, *options))
        expected, reference = by_one_process()
        assert abs(value - expected) < EXACT
        assert float((eigenvalues - reference).abs().max()) < tolerance

    @pytest.mark.parametrize("options", [(), ("--shard",)], ids=["data parallel", "sharded"])
    def test_one_process(self, options):
        value, eigenvalues = numbers(torchrun(EXAMPLE, *PATIENT, *options, processes=1))
        expected, reference = by_one_process()
        assert abs(value - expected) < EXACT
        assert float((eigenvalues - reference).abs().max()) < EXACT

    def test_three_processes_and_few_samples(self):
        """Parameters of two rows on three processes leave one without a row."""
        _, eigenvalues = numbers(torchrun(EXAMPLE, *PATIENT, "--shard", "--samples", "4", "-k", "2", processes=3))
        _, replicated = numbers(torchrun(EXAMPLE, *PATIENT, "--samples", "4", "-k", "2", processes=3))
        assert float((eigenvalues - replicated).abs().max()) < EXACT

    @pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted as Linux lists them")
    def test_no_thread_of_the_group_outlives_it(self, tmp_path):
        """One that did could abort the process while Python ends, though all was written by then."""
        script = tmp_path / "counts.py"
        counts = (
            "    main()\n"
            "    import sys\n"
            f"    sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
            "    import leaving\n"
            f"    open({str(tmp_path)!r} + '/' + os.environ['RANK'], 'w').write(str(leaving.threads_end()))\n"
        )
        script.write_text(EXAMPLE.read_text().replace("    main()\n", counts))
        done = torchrun(script, *PATIENT, "--shard")
        assert done.returncode == 0, done.stderr[-4000:]
        assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["True", "True"]

    def test_a_process_that_dies_ends_all(self, tmp_path):
        """torchrun ends the others, which wait for one that raised before it took part."""
        script = tmp_path / "dies.py"
        script.write_text(
            EXAMPLE.read_text().replace("    if options.shard:", "    1 / dist.get_rank()\n    if options.shard:")
        )
        done = torchrun(script, "--timeout", "900")
        assert done.returncode != 0
        assert "ZeroDivisionError" in done.stderr

    def test_without_torchrun_waiting_ends_by_the_timeout(self, tmp_path):
        """Two processes that nobody watches: the one that is left waiting raises after the group's timeout."""
        code = (
            "import sys, torch, datetime; from torch import distributed as dist; "
            "from thalweg.operators.data_parallel import data_parallel; from thalweg.problem import Problem; "
            "rank = int(sys.argv[1]); "
            "dist.init_process_group('gloo', init_method='file://' + sys.argv[2], rank=rank, world_size=2, "
            "timeout=datetime.timedelta(seconds=5)); "
            "p = Problem(torch.nn.Linear(2, 1), torch.nn.MSELoss(), (torch.ones(3, 2), torch.ones(3, 1))); "
            "rank or sys.exit(3); "
            "data_parallel(p)"
        )
        store = str(tmp_path / "store")
        processes = [
            subprocess.Popen([sys.executable, "-c", code, str(rank), store], stderr=subprocess.PIPE, text=True)
            for rank in range(2)
        ]
        try:
            errors = [process.communicate(timeout=300)[1] for process in processes]
        finally:
            for process in processes:
                process.kill()
        assert [bool(process.returncode) for process in processes] == [True, True], errors
