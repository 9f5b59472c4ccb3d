"""The plug-in as another project's test suite uses it: a pytest of its own over files of its own."""

import itertools
import os
import re
import subprocess
import sys
import warnings

import pytest

from harness import kernels
from harness.errors import UnsupportedError
from harness.machine import Accelerator
from launch import building
from optbench import InconclusiveWarning, assert_not_slower, stepping
from optbench.paired import can_fork

WORK = "def work(n):\n    return lambda: sum(range(n))\n"


def python(folder, *words, timeout=120):
    settings = {key: each for key, each in os.environ.items() if not key.startswith(("COLUMNS", "PYTEST"))}
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**settings, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def suite(folder, text, *words):
    (folder / "test_theirs.py").write_text(text)
    return python(folder, "-m", "pytest", "-q", "--strict-markers", "-W", "error", *words)


def asserted(folder, candidate, baseline, more=""):
    text = f"{WORK}import optbench\nprint(optbench.assert_not_slower({candidate}, {baseline}{more}))"
    return python(folder, "-c", text)


def test_the_same_work_is_not_slower(tmp_path):
    done = asserted(tmp_path, "work(3000)", "work(3000)", ", margin=0.25, budget_s=8")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("not slower") or "InconclusiveWarning" in done.stderr
    assert "forked launches" in done.stdout


def test_twice_the_work_fails_with_ratio_and_bounds(tmp_path):
    done = asserted(tmp_path, "work(6000)", "work(3000)", ", budget_s=8")
    assert "AssertionError: slower: " in done.stderr
    assert "99 % bounds" in done.stderr


def test_an_exception_in_a_callable_comes_out_with_its_text(tmp_path):
    done = asserted(tmp_path, "lambda: 1 / 0", "work(10)")
    assert "RuntimeError: a callable raised in a launch" in done.stderr
    assert "ZeroDivisionError" in done.stderr


def test_a_callable_that_hangs_is_ended(tmp_path):
    done = asserted(tmp_path, "lambda: __import__('time').sleep(60)", "work(10)", ", timeout_s=1")
    assert "TimeoutError: a launch of both callables did not end within 1 s" in done.stderr
    assert "pass a larger timeout_s, else one hangs" in done.stderr


def test_a_process_that_dies_is_told(tmp_path):
    done = asserted(tmp_path, "lambda: __import__('os')._exit(3)", "work(10)")
    assert "RuntimeError: a launch's process died, status 3" in done.stderr


def test_too_small_a_budget_warns_or_fails_as_asked():
    with pytest.warns(InconclusiveWarning, match=r"budget_s=\d+ is enough for the look after 4 launches"):
        found = assert_not_slower(int, int, budget_s=1e-6)
    assert found.verdict == "inconclusive"
    with pytest.raises(AssertionError, match=r"inconclusive.*budget_s=\d+ is enough"):
        assert_not_slower(int, int, budget_s=1e-6, strict=True)


@pytest.mark.parametrize("wrong", [{"margin": -0.1}, {"margin": float("nan")}, {"budget_s": 0}, {"timeout_s": -1}])
def test_numbers_without_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=r"expected (a fraction below 1|times above 0)"):
        assert_not_slower(int, int, **wrong)


def test_beside_other_threads_launches_stay_in_the_process():
    import threading

    ended = threading.Event()
    other = threading.Thread(target=ended.wait)
    other.start()
    try:
        assert not can_fork()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InconclusiveWarning)
            assert assert_not_slower(int, int, margin=0.9, budget_s=1).kind == "in-process"
    finally:
        ended.set()
        other.join()


def test_steps_go_through_pytest_benchmark_with_its_storage_and_comparison(tmp_path):
    text = """
import pytest
@pytest.mark.optbench(["sgd/foreach", "adamw/f*"], workload="linear_regression")
def test_step(optbench):
    assert optbench.step() > 0
def test_own(optbench):
    with pytest.raises(AssertionError):
        optbench.assert_not_slower(lambda: sum(range(9000)), lambda: sum(range(3000)), budget_s=8)
@pytest.mark.optbench("adamw/apex", workload="linear_regression")
def test_elsewhere(optbench):
    optbench.step()
"""
    first = suite(tmp_path, text, "-rs", "--benchmark-only", "--benchmark-autosave", "--benchmark-max-time=0.1")
    assert first.returncode == 0, first.stdout
    assert "test_step[sgd/foreach]" in first.stdout
    assert "test_step[adamw/fused]" in first.stdout
    assert "adamw/apex" in first.stdout
    stored = next(tmp_path.glob(".benchmarks/*/*.json")).read_text()
    assert '"optimizer": "adamw/fused"' in stored
    second = suite(tmp_path, text, "--benchmark-compare", "--benchmark-max-time=0.1")
    assert second.returncode == 0, second.stdout
    assert "(0001_" in second.stdout


def test_without_pytest_benchmark_a_step_says_what_to_install_and_assertions_work(tmp_path):
    text = """
def test_step(optbench):
    optbench.step("sgd/foreach")
def test_paired(optbench):
    assert optbench.assert_not_slower(int, int, margin=0.9, budget_s=6).verdict == "not slower"
"""
    done = suite(tmp_path, text, "-p", "no:benchmark")
    assert "pip install -e " in done.stdout
    assert "[pytest]" in done.stdout
    assert "1 failed, 1 passed" in done.stdout


STEPS = """
import pytest, torch
OPTIMIZER = dict(optimizer="sgd/foreach", workload="linear_regression")
def settings():
    b = torch.backends
    places = (b.cuda.matmul, b.mkldnn.matmul, b.cudnn.conv, b.cudnn.rnn)
    found = [each.fp32_precision for each in places]
    return [torch.get_num_threads(), torch.get_float32_matmul_precision(), *found]
"""


def test_a_step_runs_with_its_threads_and_in_fp32_and_leaves_the_suite_its_own(tmp_path):
    text = f"""{STEPS}
@pytest.mark.parametrize("precision", ["high", "highest"])
def test_step(optbench, benchmark, monkeypatch, precision):
    seen = []
    def watched(step):
        seen.append(settings())
        return step()
    watched.extra_info = benchmark.extra_info
    torch.set_float32_matmul_precision(precision)
    before = settings()
    monkeypatch.setattr(optbench, "_request", type("R", (), dict(
        config=optbench._request.config, getfixturevalue=lambda self, name: watched))())
    benchmark(int)
    optbench.step(**OPTIMIZER, threads=before[0] + 2)
    optbench.step(**OPTIMIZER)
    assert [each[0] for each in seen] == [before[0] + 2, before[0]]
    assert all(each[1] == "highest" and "tf32" not in each for each in seen)
    assert watched.extra_info["threads"] == before[0]
    assert settings() == before
    watched.extra_info = None
    with pytest.raises(AttributeError):
        optbench.step(**OPTIMIZER, threads=before[0] + 2)
    assert settings() == before
"""
    done = suite(tmp_path, text, "--benchmark-disable")
    assert "2 passed" in done.stdout, done.stdout


def test_a_field_that_would_change_nothing_fails_with_its_name_and_a_remedy(tmp_path):
    text = f"""{STEPS}
FIELDS = dict(strategy="ddp", world_size=2, schedule="warmup-cosine", steps=5, warmup_steps=1, timeout_s=3.0)
@pytest.mark.parametrize("field", FIELDS)
def test_step(optbench, field):
    optbench.step(**OPTIMIZER, **{{field: FIELDS[field]}})
def test_the_same_as_fixed(optbench):
    optbench.step(**OPTIMIZER, strategy="single", world_size=1, schedule="constant")
def test_unknown(optbench):
    optbench.step(**OPTIMIZER, batch_size=4)
def test_several(optbench):
    optbench.step(**OPTIMIZER, seed=[1, 2])
"""
    unused = "ignore::pytest_benchmark.logger.PytestBenchmarkWarning"  # theirs, wherever a test fails before
    done = suite(tmp_path, text, "--benchmark-disable", "-W", unused)
    assert "8 failed, 1 passed" in done.stdout, done.stdout
    for field in ("strategy", "world_size", "schedule", "steps", "warmup_steps", "timeout_s"):
        place = rf"optbench\.step\.{field}: .* would change nothing in a step of a test's own\n    leave it out: "
        assert re.search(place, done.stdout), done.stdout
    assert "did you mean global_batch?" in done.stdout
    assert "lists of values name 2 steps" in done.stdout


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, where its compiler is imported
def test_many_compiled_steps_of_one_process_are_all_compiled():
    from harness.optimizers.torch_compiled import captured_calls

    counts = [captured_calls()]
    for _ in range(10):
        with stepping.stepped({"workload": "linear_regression", "optimizer": "sgd/compiled", "threads": 1}):
            counts.append(captured_calls())
    assert all(after > before for before, after in itertools.pairwise(counts))


def test_what_is_not_what_its_name_says_is_not_measured(monkeypatch):
    from harness.optimizers.torch_native import Native

    monkeypatch.setattr(Native, "disproved", lambda *_: "it was another")
    with (
        pytest.raises(UnsupportedError, match="it was another"),
        stepping.stepped({"workload": "linear_regression", "optimizer": "sgd/foreach"}),
    ):
        pass


@pytest.mark.parametrize(("device", "kernels_for"), [("cpu", "cpu"), ("accelerator", "cuda")])
def test_kernels_are_built_for_the_device_that_is_asked_for(monkeypatch, device, kernels_for):
    asked = []

    def ensure(names, announce, device=None):
        asked.append(device)
        return {"cpu_adam": "no compiler"}

    here = stepping._machine((), ())
    with_one = here.model_copy(update={"accelerators": (Accelerator(index=0, type="cuda", name="some"),)})
    monkeypatch.setattr(stepping, "_machine", lambda *_: with_one)
    monkeypatch.setattr(kernels, "ensure", ensure)
    monkeypatch.setattr(kernels, "default_device", lambda: "cuda")
    monkeypatch.setattr(building, "kernels_of", lambda *_: ("cpu_adam",))
    with (
        pytest.raises(UnsupportedError, match="no compiler"),
        stepping.stepped({"workload": "linear_regression", "optimizer": "sgd/foreach", "device": device}),
    ):
        pass
    assert asked == [kernels_for]


def test_the_plugin_imports_no_torch(tmp_path):
    done = python(
        tmp_path, "-c", "import sys, optbench.plugin; print({'torch', 'scipy', 'numpy'} & set(sys.modules))"
    )
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("'none/*'", "no optimizer is called none/*"),
        ("'adamw/fused', 'linear_regression'", "fields of the spec are given by name"),
        ("'sgd/fused', optimizers='adamw/fused'", "a name or a list of names"),
    ],
)
def test_a_marker_that_cannot_be_meant_is_a_usage_error(tmp_path, words, told):
    text = f"import pytest\n@pytest.mark.optbench({words})\ndef test_step(optbench): ...\n"
    done = suite(tmp_path, text)
    assert told in done.stdout + done.stderr
