"""States of trees on their way from the nodes that sampled them to a learner rank: all of a window's at once."""

from concurrent.futures import Future
from threading import Lock
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError

from ...learner.needed_states import needed_states
from ...proto.remote_tree import RemoteTree, States
from ...proto.settings import RunSettings
from ...proto.tracing import span
from ...proto.tree import Tree, Window

Name = tuple[int, int]
"""Iteration and number of the first tree of a window. Windows come in this order, from the first iteration, 1, until a
checkpoint is loaded."""
Held = dict[Any, States]
"""Reference -> the states that it leads to."""


class FetchedStates:
    """The states that a rank needs of a window. One thread fetches the next window's while another one learns from the
    present window: no more are held."""

    def __init__(self, settings: RunSettings, rank: int, ranks: int) -> None:
        self._settings, self._rank, self._ranks = settings, rank, ranks
        self._lock = Lock()
        self._taken: Name = (0, 0)
        """The last window whose trees were taken."""
        self._windows: dict[Name, Future[Held]] = {}
        """The states of later windows, or what will become of them, from the moment that somebody fetches them."""

    def fetch(self, window: Window[RemoteTree[Any]]) -> None:
        """Fetch the states of a window of scored trees, unless somebody does already, or its trees were taken.

        If some are lost, none is held: who asks for one of them sees why.
        """
        name, fetched = _name(window), Future[Held]()
        with self._lock:
            if name <= self._taken or name in self._windows:
                return
            self._windows[name] = fetched
        try:
            fetched.set_result(self._states(window))
        except RayError:
            fetched.set_result({})
        except BaseException as error:
            fetched.set_exception(error)

    def take(self, window: Window[RemoteTree[Any]]) -> Window[Tree]:
        """Take the trees of a window, with the states that the rank needs. Others are fetched when asked for."""
        with span("fetch"):
            self.fetch(window)
            with self._lock:
                self._taken = _name(window)
                fetched = self._windows.pop(self._taken)
            held = fetched.result()

        def states(reference: Any) -> States:
            return held[reference] if reference in held else _fetched(reference)

        return window.of(lambda tree: tree.tree(states))

    def forget(self) -> None:
        """Expect windows of any iteration: after a checkpoint was loaded, earlier ones come again."""
        with self._lock:
            self._taken = (0, 0)
            self._windows.clear()

    def _states(self, window: Window[RemoteTree[Any]]) -> Held:
        if self._settings.learner.keep_graph:  # this process has sampled what it works on
            return {}
        trees = window.of(lambda tree: tree.tree(_fetched))
        needed = needed_states(trees, self._settings, rank=self._rank, ranks=self._ranks)
        references = [
            states
            for tree, nodes in zip(window.trees, needed, strict=True)
            for header, states in tree.parts
            if nodes and (header.conditioning or np.isin(header.nodes, list(nodes)).any())
        ]
        return dict(zip(references, ray.get(references), strict=True))


def _name(window: Window[RemoteTree[Any]]) -> Name:
    return window.iteration, window.trees[0].number


def _fetched(reference: Any) -> States:
    with span("fetch"):
        fetched: States = ray.get(reference)
        return fetched
