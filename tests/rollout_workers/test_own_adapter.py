"""Adapters of the user's own: what they raise is one error with its place, on Ray too."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from branchgrpo.cluster.commands.check import check
from branchgrpo.proto.errors import Diverged, InputError, RunFailed
from branchgrpo.proto.recipe import save_recipe
from branchgrpo.rollout_workers.policies.load import find_adapter, load_policy
from support import Settings, command

CODE = """\
from branchgrpo.proto.errors import Diverged, InputError
from branchgrpo.rollout_workers.policies.flux import FluxPolicy

class Flawed(FluxPolicy):
    def __init__(self, *given, **named):
        raise OSError("no such model")

class Encodes(FluxPolicy):
    def encode(self, prompt):
        return undefined

class Moves(FluxPolicy):
    def velocity(self, latents, sigma, conditioning, network=None):
        return super().velocity(latents[:, :1], sigma, conditioning, network)

class Decodes(FluxPolicy):
    def decode(self, latents):
        raise type("Odd", (Exception,), {"__reduce__": lambda self: (open, ("nowhere",))})("can't travel")

class Shapes(FluxPolicy):
    @property
    def latent_shape(self):
        return self.no_shape

class Refuses(FluxPolicy):
    def encode(self, prompt):
        raise InputError("wants English")

    def decode(self, latents):
        raise Diverged("not finite")

class Flat(FluxPolicy):
    def decode(self, latents):
        return super().decode(latents)[..., 0]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_adapters.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_adapters", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("adapter", "used", "told"),
    [
        ("Flawed", lambda policy: None, r"OSError: no such model \(.*own_adapters.py, line 6\)"),
        ("Encodes", lambda policy: policy.encode("x"), r"NameError: name 'undefined' .*own_adapters.py, line 10\)"),
        (
            "Moves",
            lambda policy: policy.velocity(torch.zeros(1, *policy.latent_shape), torch.ones(1), {}),
            r"\w+: .*own_adapters.py, line 14\)",
        ),
        ("Decodes", lambda policy: policy.decode(None), r"Odd: can't travel \(.*own_adapters.py, line 18\)"),
        ("Shapes", lambda policy: policy.latent_shape, r"AttributeError: .*own_adapters.py, line 23\)"),
    ],
)
def test_what_it_raises_is_told_with_its_place(
    folder: Path, adapter: str, used: Callable[..., object], told: str, run_settings: Settings
) -> None:
    settings = run_settings({"policy.adapter": f"own_adapters:{adapter}"})
    with pytest.raises(RunFailed, match=f"^policy.adapter 'own_adapters:{adapter}' raised {told}\nTrace") as failed:
        used(load_policy(settings.policy))
    traceback = str(failed.value).splitlines()[1:]
    assert "own_adapters.py" in traceback[1]  # nothing of ours before it
    assert "own_adapter.py" not in str(failed.value)


def test_what_is_told_already_stays_so(folder: Path, run_settings: Settings) -> None:
    policy = load_policy(run_settings({"policy.adapter": "own_adapters:Refuses"}).policy)
    with pytest.raises(InputError, match="^wants English$"):
        policy.encode("x")
    with pytest.raises(Diverged, match="^not finite$"):
        policy.decode(None)


def test_it_is_the_class_that_was_named(folder: Path) -> None:
    import own_adapters

    found = find_adapter("own_adapters:Encodes")
    assert issubclass(found, own_adapters.Encodes)
    assert (found.__module__, found.__name__) == ("own_adapters", "Encodes")


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("x = 1\ny = x.z", r"AttributeError: 'int' object has no attribute 'z' \(.*flawed_adapter.py, line 2\)"),
        ("class A(:", r"SyntaxError: invalid syntax \(.*flawed_adapter.py, line 1\)"),
        ("\nimport not_a_package", r"ModuleNotFoundError: No module .* \(.*flawed_adapter.py, line 2\)"),
    ],
)
def test_a_module_that_raises_is_told_with_its_line(
    code: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_settings: Settings
) -> None:
    (tmp_path / "flawed_adapter.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "flawed_adapter", raising=False)
    settings = run_settings({"policy.adapter": "flawed_adapter:A"})
    with pytest.raises(InputError, match=f"^policy.adapter is 'flawed_adapter:A', which .*: {told}\nTrace") as failed:
        load_policy(settings.policy)
    assert "recipe.py" not in str(failed.value)
    assert check(settings).missing == [str(failed.value)]


def test_check_tells_what_its_constructor_raises(folder: Path, run_settings: Settings) -> None:
    (told,) = check(run_settings({"policy.adapter": "own_adapters:Flawed"})).missing
    assert told.startswith("policy.adapter 'own_adapters:Flawed' raised OSError: no such model (")


LATENTS = torch.zeros(2, 24, 64)


@pytest.mark.parametrize(
    ("member", "code", "used", "told"),
    [
        ("device", "'cpu'", lambda policy: policy.device, "'cpu'; it must be a torch.device"),
        ("latent_shape", "[24, 64]", lambda policy: policy.latent_shape, "a list, .*; it must be a tuple of positive"),
        ("latent_shape", "(24, 0)", lambda policy: policy.latent_shape, "a tuple, .*; it must be a tuple of positive"),
        ("sigmas", "[1.0, 0.0]", lambda policy: policy.sigmas(2), "a list, .* for 2; it must be a list of one finite"),
        ("sigmas", "[1.0, 'a']", lambda policy: policy.sigmas(1), "a list, .* for 1; it must be a list of one finite"),
        ("encoding", "'a/b'", lambda policy: policy.encoding, "'a/b'; it must be a text that can name a file"),
        ("encode", "[1]", lambda policy: policy.encode("x"), "a list, .*; it must be a dict of tensors"),
        ("encode", "{'a': 1}", lambda policy: policy.encode("x"), "a dict, .*; it must be a dict of tensors"),
        ("velocity", "None", lambda policy: policy.velocity(LATENTS, None, {}), "None for a tensor of torch.float32"),
        (
            "velocity",
            "given[0][:1]",
            lambda policy: policy.velocity(LATENTS, None, {}),
            r"a tensor .* \[1, 24, 64\] for",
        ),
        ("velocity", "given[0].int()", lambda policy: policy.velocity(LATENTS, None, {}), "a tensor of torch.int32"),
        ("velocity", "(given[0],)", lambda policy: policy.velocity(LATENTS, None, {}), "a tuple, "),
        (
            "decode",
            "given[0]",
            lambda policy: policy.decode(LATENTS),
            "a tensor .*; it must be floating-point numbers,",
        ),
        (
            "decode",
            "[]",
            lambda policy: policy.decode(latents=LATENTS),
            "a list, .*; it must be floating-point numbers,",
        ),
        ("save", "None", lambda policy: policy.save(Path()), "None; it must be a Path"),
        ("cut_prompts", "0", lambda policy: policy.cut_prompts([]), "0; it must be a list of texts"),
        ("with_guidance", "None", lambda policy: policy.with_guidance(2.0), "None; it must be a policy"),
    ],
)
def test_what_is_returned_wrongly_is_told_with_its_place(
    folder: Path, member: str, code: str, used: Callable[..., object], told: str, run_settings: Settings
) -> None:
    wrong = f"def {member}(self, *given, latents=None):\n        return {code}"
    if member in ("device", "latent_shape", "encoding"):
        wrong = f"@property\n    {wrong}"
    begin = "from branchgrpo.rollout_workers.policies.flux import FluxPolicy\n\nclass Wrong(FluxPolicy):\n"
    (folder / "own_adapters.py").write_text(
        f"{begin}    def __init__(self, *given, **named):\n        self.network = __import__('torch').nn.Identity()\n\n"
        f"    {wrong}\n"
    )
    policy = load_policy(run_settings({"policy.adapter": "own_adapters:Wrong"}).policy)
    named = rf"^policy.adapter 'own_adapters:Wrong': Wrong\.{member} returned "
    with pytest.raises(RunFailed, match=rf"{named}{told}.* \(.*own_adapters.py, line 7\)$"):
        used(policy)


def test_an_adapter_without_a_network_is_told(folder: Path, run_settings: Settings) -> None:
    begin = "from branchgrpo.rollout_workers.policies.flux import FluxPolicy\n\nclass Empty(FluxPolicy):\n"
    (folder / "own_adapters.py").write_text(f"{begin}    def __init__(self, *given, **named):\n        pass\n")
    with pytest.raises(RunFailed, match=r"Empty.network is None; it must be a torch.nn.Module \(.*, line 4\)$"):
        load_policy(run_settings({"policy.adapter": "own_adapters:Empty"}).policy)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("adapter", "told"),
    [
        ("Encodes", " raised NameError: name 'undefined' is not defined ({file}, line 10)"),
        ("Flawed", " raised OSError: no such model ({file}, line 6)"),
        ("Decodes", " raised Odd: can't travel ({file}, line 18)"),
        ("Flat", ": Flat.decode returned a tensor of torch.float32, "),
    ],
)
def test_a_run_on_ray_ends_with_it_at_its_first_failure(
    folder: Path, adapter: str, told: str, run_settings: Settings
) -> None:
    own = {"cpus": 0.1, "threads": 1}
    changes = {
        "execution": "ray",
        "policy.adapter": f"own_adapters:{adapter}",
        "rewards": {"counting": {"scorer": "branchgrpo.benchmarks.support.stand_ins:counting_scorer"}},
        "prompts.held_out": None,
        "pools": {"rollout_workers": own, "learner": own, "rewards": {"counting": own}},
    }
    recipe = save_recipe(run_settings(changes), folder / "recipe")
    done = subprocess.run(command("train", recipe), cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    beginning = told.format(file=folder / "own_adapters.py")
    assert done.stderr.startswith(f"error: policy.adapter 'own_adapters:{adapter}'{beginning}"), done.stderr
    assert done.stderr.count("Traceback") == (adapter != "Flat"), done.stderr
    assert "ray::" not in done.stderr
    assert "own_adapters.py" not in done.stdout  # told once
