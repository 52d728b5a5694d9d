"""Adapters of the user's own: what they raise is one error with its place, on Ray too."""

import sys
from collections.abc import Callable
from pathlib import Path

import own_adapters
import pytest
import torch
from branchgrpo.cluster.commands.check import check
from branchgrpo.proto.errors import Diverged, InputError, RunFailed
from branchgrpo.rollout_workers.policies.load import find_adapter, load_policy
from support import Settings


@pytest.mark.parametrize(
    ("adapter", "used", "told"),
    [
        ("Flawed", lambda policy: None, r"OSError: no such model \(.*own_adapters.py, line 12\)"),
        ("Encodes", lambda policy: policy.encode("x"), r"NameError: name 'undefined' .*own_adapters.py, line 17\)"),
        (
            "Moves",
            lambda policy: policy.velocity(torch.zeros(1, *policy.latent_shape), torch.ones(1), {}),
            r"\w+: .*own_adapters.py, line 22\)",
        ),
        ("Decodes", lambda policy: policy.decode(None), r"Odd: can't travel \(.*own_adapters.py, line 27\)"),
        ("Shapes", lambda policy: policy.latent_shape, r"AttributeError: .*own_adapters.py, line 33\)"),
    ],
)
def test_what_it_raises_is_told_with_its_place(
    adapter: str, used: Callable[..., object], told: str, run_settings: Settings
) -> None:
    settings = run_settings({"policy.adapter": f"own_adapters:{adapter}"})
    with pytest.raises(RunFailed, match=f"^policy.adapter 'own_adapters:{adapter}' raised {told}\nTrace") as failed:
        used(load_policy(settings.policy))
    traceback = str(failed.value).splitlines()[1:]
    assert "own_adapters.py" in traceback[1]  # nothing of ours before it
    assert "own_adapter.py" not in str(failed.value)


def test_what_is_told_already_stays_so(run_settings: Settings) -> None:
    policy = load_policy(run_settings({"policy.adapter": "own_adapters:Refuses"}).policy)
    with pytest.raises(InputError, match="^wants English$"):
        policy.encode("x")
    with pytest.raises(Diverged, match="^not finite$"):
        policy.decode(None)


def test_it_is_the_class_that_was_named() -> None:
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


def test_check_tells_what_its_constructor_raises(run_settings: Settings) -> None:
    (told,) = check(run_settings({"policy.adapter": "own_adapters:Flawed"})).missing
    assert told.startswith("policy.adapter 'own_adapters:Flawed' raised OSError: no such model (")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the module `wrong_adapter` is to be written."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wrong_adapter", raising=False)
    return tmp_path / "wrong_adapter.py"


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
    module: Path, member: str, code: str, used: Callable[..., object], told: str, run_settings: Settings
) -> None:
    wrong = f"def {member}(self, *given, latents=None):\n        return {code}"
    if member in ("device", "latent_shape", "encoding"):
        wrong = f"@property\n    {wrong}"
    begin = "from branchgrpo.rollout_workers.policies.flux import FluxPolicy\n\nclass Wrong(FluxPolicy):\n"
    module.write_text(
        f"{begin}    def __init__(self, *given, **named):\n        self.network = __import__('torch').nn.Identity()\n\n"
        f"    {wrong}\n"
    )
    policy = load_policy(run_settings({"policy.adapter": "wrong_adapter:Wrong"}).policy)
    named = rf"^policy.adapter 'wrong_adapter:Wrong': Wrong\.{member} returned "
    with pytest.raises(RunFailed, match=rf"{named}{told}.* \(.*wrong_adapter.py, line 7\)$"):
        used(policy)


def test_an_adapter_without_a_network_is_told(module: Path, run_settings: Settings) -> None:
    begin = "from branchgrpo.rollout_workers.policies.flux import FluxPolicy\n\nclass Empty(FluxPolicy):\n"
    module.write_text(f"{begin}    def __init__(self, *given, **named):\n        pass\n")
    with pytest.raises(RunFailed, match=r"Empty.network is None; it must be a torch.nn.Module \(.*, line 4\)$"):
        load_policy(run_settings({"policy.adapter": "wrong_adapter:Empty"}).policy)
