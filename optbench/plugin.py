"""The plug-in for pytest: the fixture and marker ``optbench``. Imports no torch before a test asks for a step."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING, Any

import pytest

from optbench.paired import assert_not_slower

if TYPE_CHECKING:
    from collections.abc import Callable

    from optbench.paired import NotSlower

TOO_MANY = "optimizers are one argument, a name or a list of names; fields of the spec are given by name"
MARKER = (
    "optbench(optimizers, *, workload='gpt', size=None, **spec): step these optimizers, names or patterns such as "
    "'adamw/*', on this workload through pytest-benchmark"
)
NO_BENCHMARK = "optbench.step needs pytest-benchmark: {}, and no -p no:benchmark"


class Bench:
    """What a test gets: optimizers stepped through pytest-benchmark, and the paired assertion.

    Args:
        request: of the test.
        optimizer: that its marker asks for.
        fields: of the spec, that its marker gives.
    """

    def __init__(self, request: pytest.FixtureRequest, optimizer: str | None, fields: dict[str, Any]) -> None:
        self._request, self._optimizer, self._fields = request, optimizer, fields

    def step(self, optimizer: str | None = None, **fields: Any) -> Any:
        """Benchmark whole training steps: data, forward, backward and the optimizer's step, in this process.

        Args:
            optimizer: ``adamw/fused`` or ``module:Class``; None: the marker's.
            fields: of a run's spec: ``workload``, ``size``, ``precision``, ``lr``, ``optimizer_options``, ….
                The test fails where one would change nothing here, such as ``strategy`` or ``steps``.

        Returns:
            The last step's loss.
        """
        if not _has_benchmark(self._request.config):
            from harness.installing import install

            pytest.fail(NO_BENCHMARK.format(install("pytest")), pytrace=False)
        name = optimizer or self._optimizer
        if name is None:
            pytest.fail("optbench.step() names no optimizer, nor does a marker", pytrace=False)
        from harness.errors import InvalidInputError, UnsupportedError
        from optbench import stepping

        benchmark = self._request.getfixturevalue("benchmark")
        asked = {"workload": "gpt", **self._fields, **fields, "optimizer": name}
        unsupported, wrong = None, None
        try:
            with stepping.stepped(asked) as (step, about):
                benchmark.extra_info.update(about)
                return benchmark(step)
        except UnsupportedError as error:
            unsupported = f"{name}: {error}"
        except InvalidInputError as error:
            wrong = str(error)
        # Out here, so that pytest does not show what was caught as well.
        if unsupported is not None:
            pytest.skip(unsupported)
        pytest.fail(wrong or "", pytrace=False)

    def assert_not_slower(
        self, candidate: Callable[[], object], baseline: Callable[[], object], **options: Any
    ) -> NotSlower:
        """Be `optbench.assert_not_slower`."""
        __tracebackhide__ = True
        return assert_not_slower(candidate, baseline, **options)


@pytest.fixture
def optbench(request: pytest.FixtureRequest) -> Bench:
    """Step optimizers through pytest-benchmark, or assert that one callable is not slower than another."""
    marker = request.node.get_closest_marker("optbench")
    fields = {} if marker is None else {key: each for key, each in marker.kwargs.items() if key != "optimizers"}
    return Bench(request, getattr(request, "param", None), fields)


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", MARKER)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a marked test one call for each optimizer that is meant."""
    marker = metafunc.definition.get_closest_marker("optbench")
    if marker is None or "optbench" not in metafunc.fixturenames:
        return
    if len(marker.args) + ("optimizers" in marker.kwargs) > 1:
        raise pytest.UsageError(f"optbench marker: {TOO_MANY}; found {', '.join(map(repr, marker.args))}")
    asked = marker.kwargs.get("optimizers", marker.args[0] if marker.args else ())
    names = _named([asked] if isinstance(asked, str) else list(asked))
    metafunc.parametrize("optbench", names, indirect=True, ids=names)


def _named(asked: list[str]) -> list[str]:
    from harness.registry import OPTIMIZERS

    found: list[str] = []
    for each in asked:
        meant = fnmatch.filter(OPTIMIZERS.names(), each) if any(sign in each for sign in "*?[") else [each]
        if not meant:
            raise pytest.UsageError(f"optbench marker: no optimizer is called {each}; optbench list optimizers")
        found += meant
    if not found:
        raise pytest.UsageError("optbench marker: names no optimizers; @pytest.mark.optbench('adamw/*')")
    return list(dict.fromkeys(found))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tell pytest-benchmark which tests are benchmarks: those that step, so that --benchmark-only keeps them."""
    for item in items:
        if isinstance(item, pytest.Function) and "optbench" in item.fixturenames:
            steps = "step" in getattr(item.function, "__code__", _nothing.__code__).co_names
            known = _has_benchmark(item.config)
            if steps and known and "benchmark" not in item.fixturenames:
                item.fixturenames.append("benchmark")


def _has_benchmark(config: pytest.Config) -> bool:
    """Return whether pytest-benchmark is there, found by its entry point or named by -p."""
    return any(config.pluginmanager.hasplugin(name) for name in ("benchmark", "pytest_benchmark.plugin"))


def _nothing() -> None: ...
