"""A run that is killed while it records trees leaves whole files."""

import subprocess
import sys
from pathlib import Path

from branchgrpo.cluster.run.tree_record import read, recorded_trees
from support import until

ENDLESS = """
import sys
from itertools import count
from pathlib import Path
import numpy as np
from branchgrpo.cluster.run.tree_record import tree_record, write
from branchgrpo.proto.learned_tree import LearnedTree
from branchgrpo.proto.schedule import tree_schedule
from branchgrpo.proto.tree import Thumbnail

schedule = tree_schedule(5, kernel="dance", eta=0.7, splits={0: 2, 2: 2})
zeros, states = np.zeros(schedule.nodes), np.zeros(schedule.nodes, np.uint8)
learned = LearnedTree(0, zeros, zeros, zeros, states, zeros, None, np.linspace(1, 0, 6))
thumbnails = {node: Thumbnail(bytes(2_000_000)) for node in range(4)}
for iteration in count(1):
    sampled = "1", schedule, zeros, {"r": zeros[:4]}, thumbnails
    write(Path(sys.argv[1]), tree_record(iteration, "grpo", *sampled, learned))
"""


def test_a_killed_writer_leaves_whole_files(tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", ENDLESS, str(tmp_path)])
    try:
        until(lambda: len(recorded_trees(tmp_path)) > 3 or writer.poll() is not None, 60)
    finally:
        writer.kill()
        writer.wait()
    found = recorded_trees(tmp_path)
    assert len(found) > 3
    for (iteration, tree), path in found.items():
        record = read(path)
        assert (record.iteration, record.tree, len(record.pictures)) == (iteration, tree, 4)
