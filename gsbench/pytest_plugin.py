"""pytest fixture `gpu_benchmark`: device time under gsbench's protocol, inside pytest-benchmark's reports and storage.

    def test_my_kernel(gpu_benchmark):
        y = gpu_benchmark(my_kernel, x, w)                     # any call; events, a held stream, cold caches
        torch.testing.assert_close(y, x @ w)

    def test_my_case(gpu_benchmark):
        gpu_benchmark.case("group_shared/triton", "backward", batch=256, dim=768, labels=131072, fan_in=32, group_size=32)

The second form verifies against the float64 oracle before and after it times, fails where that fails, skips what the
implementation cannot do, and leaves a record that `gsbench import` makes a run of. Stops are pytest-benchmark's: its
--benchmark-max-time is the time budget, --benchmark-min-rounds the fewest samples, --benchmark-disable calls once.
Loads torch when a test first asks for a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from gsbench.measure.single import Stopwatch, Timed
    from gsbench.suite import TimingSettings

FEWEST = 20  # samples
_WATCH = pytest.StashKey["Stopwatch"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gsbench")
    group.addoption("--gsbench-device", default="auto", help="where gpu_benchmark measures: auto, cpu, cuda or cuda:N")


class GpuBenchmark:
    """What the fixture hands to a test. To be used once a test, as `benchmark` is."""

    def __init__(self, benchmark: Any, config: pytest.Config) -> None:
        self._benchmark, self._config = benchmark, config

    def __call__(self, function: Callable[..., Any], *args: Any, mode: str = "cold", **kwargs: Any) -> Any:
        """Time function(*args, **kwargs) and return what its last call returned.

        mode: cold (caches flushed before each sample), hot, graph (replay of a CUDA graph) or host (launch included).
        """
        from gsbench.case import MODES

        self._claim()
        if mode not in MODES:
            raise ValueError(f"mode {mode!r}: not one of {', '.join(MODES)}")

        def call() -> Any:
            return function(*args, **kwargs)

        if self._benchmark.disabled:
            return call()
        watch = self._watch()
        if mode == "graph" and watch.device.type != "cuda":
            pytest.skip("CUDA graphs need a CUDA device")
        timed = watch.time(call, mode, self._settings())
        self._keep(timed.samples, _facts(timed, mode, watch))
        return timed.result

    def case(
        self, implementation: str, pass_: str, *, batch: int, dim: int, labels: int, fan_in: int, group_size: int,
        head_share: float = 0.0, dtype: str = "", pattern: str = "uniform", mode: str = "cold",
    ) -> None:  # fmt: skip
        """Verify and time a pass of an implementation in gsbench's tables. dtype: bf16 on a GPU, fp32 on a CPU."""
        from gsbench.case import Case, Point
        from gsbench.implementations import all_implementations
        from gsbench.passes import PASSES
        from gskernels.shape import Shape

        self._claim()
        known = {i.name: i for i in all_implementations()}
        if implementation not in known:
            raise ValueError(f"unknown implementation {implementation!r}; known: {', '.join(known)}")
        device = self._device()
        kind = device.split(":")[0]
        dtype = dtype or ("bf16" if kind == "cuda" else "fp32")
        shape = Shape(batch, dim, labels, fan_in, group_size, head_share)
        if pass_ not in PASSES:
            raise ValueError(f"unknown pass {pass_!r}; known: {', '.join(PASSES)}")
        reason = PASSES[pass_].unsupported(known[implementation], shape, dtype, kind)
        if reason:
            pytest.skip(reason)
        case = Case(implementation, pass_, Point(shape, pattern, dtype), mode, kind)
        record, samples = self._watch().case(case, self._settings())
        if record.timing is None:
            pytest.fail(f"{record.status}: {record.reason}", pytrace=False)
        if not self._benchmark.disabled:
            self._keep([ms for _, ms in samples], {"gsbench": record.to_dict()})

    def _claim(self) -> None:
        if self._benchmark._mode:
            raise RuntimeError("gpu_benchmark was used before in this test: it can be used once")
        self._benchmark._mode = "gpu_benchmark(...)"

    def _settings(self) -> TimingSettings:
        from gsbench.suite import TimingSettings

        few = max(FEWEST, self._benchmark._min_rounds)
        if self._benchmark.disabled:
            return TimingSettings(budget_s=1e-3, min_samples=5, max_samples=5, warmup_s=0)
        return TimingSettings(budget_s=self._benchmark._max_time, min_samples=few)

    def _device(self) -> str:
        from gsbench.cli.device import resolve

        return resolve(self._config.getoption("--gsbench-device"))

    def _watch(self) -> Stopwatch:
        """One for the whole session: the device's lock and its monitor are kept."""
        if _WATCH not in self._config.stash:
            from gsbench.measure.single import Stopwatch

            self._config.stash[_WATCH] = Stopwatch(self._device())
        return self._config.stash[_WATCH]

    def _keep(self, ms: list[float], extra: dict[str, Any]) -> None:
        """Our samples in pytest-benchmark's statistics, in seconds."""
        self._benchmark.extra_info.update(extra)
        stats = self._benchmark._make_stats(1)
        for sample in ms:
            stats.update(sample * 1e-3)


@pytest.fixture
def gpu_benchmark(benchmark: Any, request: pytest.FixtureRequest) -> GpuBenchmark:
    """Times device work as gsbench does; see gsbench/pytest_plugin.py."""
    return GpuBenchmark(benchmark, request.config)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """The device and the versions, where something was timed."""
    if _WATCH in config.stash:
        from gsbench.measure.environment import versions

        info = config.stash[_WATCH].bench.info
        machine_info["gsbench_device"] = {k: v for k, v in info.items() if k != "uuid"}
        machine_info["gsbench_environment"] = {k: v for k, v in versions().items() if not k.startswith("git_")}


def _facts(timed: Timed, mode: str, watch: Stopwatch) -> dict[str, Any]:
    t = timed.timing
    return {
        "method": t.method, "mode": mode, "device": watch.bench.info["name"], "ci_low_ms": t.ci_low_ms,
        "ci_high_ms": t.ci_high_ms, "bimodal": t.bimodal, "validity": list(timed.flags), "sm_mhz": timed.sm_mhz,
    }  # fmt: skip
