"""`branchgrpo node`: which node it drains when it ends."""

import pytest
from branchgrpo.cluster.commands.node import given_name
from branchgrpo.proto.errors import InputError


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["--num-gpus=8"], None),
        (["--num-gpus=8", "--node-name=mine"], "mine"),
        (["--node-name", "mine", "--resources", '{"a": 1}'], "mine"),
        (["--node-name=first", "--node-name=last"], "last"),
    ],
)
def test_a_name_that_is_given_is_the_node_s(options: list[str], name: str | None) -> None:
    assert given_name(options) == name
    with pytest.raises(InputError, match="--node-name: expected one argument"):
        given_name([*options, "--node-name"])
