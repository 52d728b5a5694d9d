"""What a call holds at its peak."""

import torch
from branchgrpo.benchmarks.support.allocated import peak_bytes

CPU = torch.device("cpu")


def test_peak_counts_one_call_alone() -> None:
    """Whatever calls before it kept, and less what it frees of that."""
    kept: list[torch.Tensor] = []
    assert peak_bytes(lambda: kept.append(torch.empty(1000)), CPU) == 4000

    def two_at_once() -> None:
        one, two = torch.empty(500), torch.empty(250)
        del one, two
        torch.empty(600)

    assert peak_bytes(two_at_once, CPU) == 3000

    def after_freeing() -> None:
        kept.clear()
        torch.empty(1500)

    assert peak_bytes(after_freeing, CPU) == 2000
