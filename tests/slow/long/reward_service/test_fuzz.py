"""A service of its own, under fire for long."""

import pytest
from fuzzing import FAST, GROWTH, Service, fire, mutated, recrc
from hypothesis import given, settings

REQUESTS = 10_000


@pytest.mark.timeout(1800)
def test_thousands_of_requests_leave_the_process_as_it_was(service: Service) -> None:
    sent = fire(service, 600, range(1, 3))
    quarter = service.memory
    while sent < REQUESTS:
        sent += fire(service, 600, range(sent, sent + 1))
    assert service.memory - quarter < GROWTH
    service.sound()
    print(f"{sent} requests: {dict(service.answered)}; {quarter >> 20} MiB, then {service.memory >> 20} MiB")


@settings(FAST, max_examples=1500)
@given(data=mutated())
def test_many_mutated_pictures(service: Service, data: bytes) -> None:
    service.picture(data)
    service.picture(recrc(data))
