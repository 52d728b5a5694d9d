"""What Ray reserves for the runs of a study."""

import pytest
from branchgrpo.cluster.commands.study import resources_of
from support import Settings


@pytest.mark.parametrize(
    ("cluster", "reserved"),
    [
        ({"memory": 1e9}, {"CPU": 3}),  # of a Ray cluster whose nodes with CPUs are still to come
        ({"CPU": 2.0}, {"CPU": 2}),
        ({"CPU": 8.0, "GPU": 1.0}, {"CPU": 3, "GPU": 1}),
    ],
    ids=["nothing yet", "few CPUs", "a GPU"],
)
def test_a_run_reserves_what_it_needs_and_there_is(
    run_settings: Settings, cluster: dict[str, float], reserved: dict[str, float]
) -> None:
    settings = run_settings({"threads": 3, "policy.device": "auto"})
    assert resources_of(settings, None, cluster) == reserved
    assert resources_of(settings, {"CPU": 1.0}, cluster) == {"CPU": 1.0}
