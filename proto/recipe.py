"""Recipes: YAML files of run settings, with `key=value` overrides, and errors that say what was meant."""

import difflib
import pkgutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from .errors import InputError
from .files import write_text
from .prompts import HUB, read_prompts, write_lines
from .settings import RunSettings

Section = TypeVar("Section", bound=BaseModel)
WHOLE = ("schedule", "rewards")
"""Sections that a recipe doesn't share with its base: another method has other settings."""


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> RunSettings:
    """Settings from the YAML file `path`, with overrides such as `learner.clip_range=1e-3`.

    An override replaces what the file says for its key. A recipe with a `base` starts from that recipe: its sections
    replace what they name in the base's, and `schedule` and `rewards` the whole section; keys may be dotted. Relative
    prompt files are looked up from the folder of the recipe that names them.

    Raises InputError with one line per mistake.
    """
    try:
        recipe = _recipe(path)
        for override in overrides:
            key, equals, _ = override.partition("=")
            if not equals or not key:
                raise InputError(f"'{override}' is no override; write key=value, such as iterations=10")
            value = OmegaConf.select(OmegaConf.from_dotlist([override]), key)
            OmegaConf.update(recipe, key, value, merge=False)
        content = OmegaConf.to_container(recipe, resolve=True)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise InputError(f"recipe {path} can't be read: {' '.join(str(error).split())}") from error
    settings = parse_settings(content)
    policy = _resolved(settings.policy, "pretrained")
    rewards = {
        name: _resolved(reward, "pretrained", "tokenizer", "backbone") for name, reward in settings.rewards.items()
    }
    return _located(settings.model_copy(update={"policy": policy, "rewards": rewards}), path)


def _resolved(section: Section, *names: str) -> Section:
    """With those of the settings `names` that are files or folders here as absolute paths, for processes elsewhere."""
    given = {name: getattr(section, name) for name in names}
    there = {name: str(Path(value).resolve()) for name, value in given.items() if value and Path(value).exists()}
    return section.model_copy(update=there)


def _recipe(path: Path, above: tuple[Path, ...] = ()) -> DictConfig:
    """What the file says, over what its base says. Raises InputError for a file that is none, or its own base."""
    if not path.is_file():
        raise InputError(f"recipe {path} doesn't exist" + (f"; it is the base of {above[-1]}" if above else ""))
    if path.resolve() in above:
        raise InputError(f"recipe {path} is its own base")
    recipe = OmegaConf.load(path)
    if not isinstance(recipe, DictConfig):
        raise InputError(f"recipe {path} doesn't hold settings ('key: value' lines)")
    if "base" not in recipe:
        return recipe
    base_path = path.parent / str(recipe.pop("base"))
    base = _recipe(base_path, (*above, path.resolve()))
    for prompts in ("prompts.train", "prompts.held_out"):
        if (file := OmegaConf.select(base, prompts)) and not str(file).startswith(HUB):
            OmegaConf.update(base, prompts, str(base_path.resolve().parent / str(file)))
    for key, value in recipe.items():
        OmegaConf.update(base, str(key), value, merge=key not in WHOLE)
    return base


def _located(settings: RunSettings, path: Path) -> RunSettings:
    """With prompt files looked up from the recipe's folder."""
    folder, prompts = path.resolve().parent, settings.prompts
    sources = {name: getattr(prompts, name) for name in ("train", "held_out")}
    located = {name: folder / path for name, path in sources.items() if path and not str(path).startswith(HUB)}
    return settings.model_copy(update={"prompts": prompts.model_copy(update=located)})


def parse_settings(content: Any) -> RunSettings:
    """Settings from plain data. Raises InputError with one line per mistake."""
    try:
        return RunSettings.model_validate(content)
    except ValidationError as error:
        raise InputError("\n".join(_explain(detail) for detail in error.errors())) from error


def imported(name: str, setting: str) -> Any:
    """What `module:attribute` names. Raises InputError, naming `setting`, if it can't be imported."""
    try:
        if ":" not in name:
            raise ValueError("there is no ':' in it")
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{setting} is '{name}', which can't be imported (module:name): {error}") from error


def dump_recipe(settings: RunSettings) -> str:
    """All settings as YAML, from which `load_recipe` makes the same settings again."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def save_recipe(settings: RunSettings, folder: Path) -> Path:
    """Write `folder`/recipe.yaml with copies of the prompt files beside it, and return its path.

    `load_recipe` makes the same settings of it, also where the original files are not.
    """
    copies, column = {}, settings.prompts.column
    for name in ("train", "held_out"):
        if original := getattr(settings.prompts, name):
            text = original.suffix == ".txt" and original.is_file()
            copies[name] = Path("prompts", f"{name}.{'txt' if text else 'jsonl'}")
            read = partial(read_prompts, original, f"prompts.{name}", column)
            content = original.read_text(encoding="utf-8") if text else write_lines(read(), column)
            write_text(folder / copies[name], content)
    own = settings.prompts.model_copy(update=copies)
    write_text(folder / "recipe.yaml", dump_recipe(settings.model_copy(update={"prompts": own})))
    return folder / "recipe.yaml"


def setting_paths(model: type[BaseModel] = RunSettings, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Dotted names of all settings, sections included, in the order of their definition.

    Sections that the user names stand as `<name>`: `rewards.<name>.weight`.
    """
    for name, field in model.model_fields.items():
        yield prefix + name, field
        for section in settings_classes(field.annotation):
            inner = f"{prefix}{name}.<name>." if get_origin(field.annotation) is dict else f"{prefix}{name}."
            yield from setting_paths(section, inner)


def settings_classes(annotation: Any) -> list[type[BaseModel]]:
    """The settings class behind a field's type: itself, within `X | None`, or the values of a dict."""
    options = (annotation, *get_args(annotation))
    return [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]


def _explain(detail: ErrorDetails) -> str:
    # Where there are alternatives, pydantic adds which one it tried: `dict[int,int]`, `literal['a','b']`.
    key = ".".join(str(part) for part in detail["loc"] if "[" not in str(part))
    if detail["type"] == "extra_forbidden":
        return f"unknown setting '{key}'; {_nearest(key)}"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "missing":
        return f"setting '{key}' is missing"
    if detail["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key} is {detail['input']!r}: {message[0].lower()}{message[1:]}"


def _nearest(key: str) -> str:
    """A hint towards the setting that was meant: of the same name elsewhere, like one beside it, like any."""
    section, _, name = key.rpartition(".")
    every = {path: path.rpartition(".")[2] for path, _ in setting_paths()}
    beside = {path: last for path, last in every.items() if _stands_for(path.rpartition(".")[0], section)}
    for candidates, likeness in ((every, 1.0), (beside, 0.6), (every, 0.6)):
        if match := difflib.get_close_matches(name, candidates.values(), n=1, cutoff=likeness):
            path = next(path for path, last in candidates.items() if last == match[0])
            return f"did you mean '{f'{section}.{match[0]}' if path in beside and section else path}'?"
    return f"valid here: {', '.join(beside.values())}" if beside else "there is no such section"


def _stands_for(pattern: str, section: str) -> bool:
    """Whether a section of `setting_paths` is the one that the user wrote, `<name>` standing for any name."""
    ours, theirs = pattern.split("."), section.split(".")
    return len(ours) == len(theirs) and all(o in (t, "<name>") for o, t in zip(ours, theirs, strict=True))
