"""How often a judge is asked, and how long all its answers may take. Needs no client."""

import math

from ..proto.settings import JudgeSettings

RETRIES = 6
"""Attempts after the first one, with waits in between that grow from half a second to `MAX_WAIT`."""
CONNECT_SECONDS = 10.0
MAX_WAIT = 8.0
"""Seconds between two attempts, unless the server asks for another wait."""


def longest_request(judge: JudgeSettings, timeout: float, pictures: int) -> float:
    """Seconds that a request may take in a replica whose batches have up to so many `pictures`.

    It waits for one batch and is answered with the next. A batch goes in rounds of `concurrency` questions, and a
    question takes `timeout` seconds at most in each attempt. A question with a list counts as one.
    """
    rounds = math.ceil(pictures * (judge.opponents or 1) * len(judge.questions) / judge.concurrency)
    question = (RETRIES + 1) * (CONNECT_SECONDS + timeout) + RETRIES * MAX_WAIT
    return 2 * rounds * question
