"""An allocator that says no, told in figures. Real errors of torch and numpy: nobody has 64 TiB."""

from __future__ import annotations

import errno

import pytest

torch = pytest.importorskip("torch")

from dtrain.train.memory import PeakMemory  # noqa: E402
from dtrain.train.out_of_memory import is_out_of_memory, out_of_memory  # noqa: E402
from dtrain.units import GIB  # noqa: E402

TOO_MANY = 2**44


def refused(peak: PeakMemory) -> BaseException:
    try:
        with peak.watched():
            kept = torch.zeros(2**26)
            torch.empty(TOO_MANY)
    except RuntimeError as error:
        del kept
        return error
    raise AssertionError("64 TiB were there")


def test_what_was_held_and_what_was_asked_for() -> None:
    peak = PeakMemory(torch.device("cpu"))
    with peak.watched():
        before = torch.zeros(1)
    error = refused(peak)
    assert is_out_of_memory(error)
    told = out_of_memory(error, peak, "forward", 6, planned_gib=1.5)
    assert told.shortage.asked_gib == 4 * TOO_MANY / GIB
    assert 0.25 <= told.shortage.had_gib < 0.35
    assert "out of memory in forward of step 7: planned peak 1.50 GiB, measured at least 65,536" in str(told)
    assert told.told["shortage"]["place"] == "forward"
    del before


def test_a_gpus_own_words() -> None:
    words = (
        "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 23.64 GiB of which 1.05 GiB is "
        "free. Of the allocated memory 20.25 GiB is allocated by PyTorch, and 1.10 GiB is reserved by PyTorch but "
        "unallocated."
    )
    shortage = out_of_memory(
        torch.OutOfMemoryError(words), PeakMemory(torch.device("cpu")), "the rehearsal", 0, planned_gib=19.0
    ).shortage
    assert (shortage.had_gib, shortage.asked_gib) == (20.25, 2.5)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError("std::bad_alloc"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("shape '[2]' is invalid for input of size 3"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_which_errors_mean_it(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
