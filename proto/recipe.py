"""Recipes: YAML files of run settings, with `key=value` overrides, with bases and copies of prompts."""

import difflib
import os
import pkgutil
import types
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel

from .atomic_files import decoded, write_text
from .errors import InputError
from .pictures import FOLDER as PICTURES
from .pictures import keep
from .prompts import HUB, prompts_in, write_lines
from .settings import RunSettings
from .settings_errors import parse_settings, shown
from .user_code import described, is_users
from .yaml12 import read_yaml, write_yaml

Section = TypeVar("Section", bound=BaseModel)
Keys = tuple[Any, ...]
"""A setting's dotted name, taken apart."""
WHOLE_RECIPE = ("schedule", "rewards")
"""Sections that a recipe doesn't share with its base: another method has other settings."""
SHIPPED = Path(__file__).parents[1] / "recipes"
"""Recipes that go by their name alone."""


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> RunSettings:
    """Settings from the YAML file `path`, or the shipped recipe of this name, with overrides such as
    `learner.clip_range=1e-3`.

    An override replaces what the file says for its key. For a setting that is text, the text is taken as it stands, and
    `null` for none where there may be none; any other value is read as YAML. A recipe with a `base` starts from that
    recipe: its sections replace what they name in the base's, and `schedule` and `rewards` the whole section, with
    `pools.rewards` of rewards that are gone; keys may be dotted. Relative prompt files are looked up from the folder
    of the recipe that names them, and those of overrides from the current one.

    Raises InputError with one line per mistake.
    """
    path = _found(path)
    recipe = _recipe(path)
    given = dict(map(_parsed, overrides))
    if ("rewards",) in given:
        _forget_pools(recipe, given["rewards",])
    for keys, value in given.items():
        _put(recipe, keys, value)
    if given:  # else all is located, and the current folder, which may be gone, isn't looked at
        _locate_prompts(recipe, Path.cwd())
    return _settings(recipe)


def load_variant(path: Path, base: str, layers: Sequence[Mapping[str, Any]]) -> RunSettings:
    """Settings of the recipe `base` with `layers` of changes, each as if it were a recipe whose base is the one before.

    `path` is the file that names them: other files are looked up from its folder. Raises InputError with one line per
    mistake.
    """
    recipe = _base(path, base, ())
    for layer in layers:
        _lay(recipe, layer, path)
    _locate_prompts(recipe, path.resolve().parent)
    return _settings(recipe)


def _settings(recipe: dict[str, Any]) -> RunSettings:
    """The settings in a recipe's content, with absolute paths."""
    settings = parse_settings(recipe)
    policy = _resolved(settings.policy, "pretrained", "config")
    if policy.start_from:
        policy = policy.model_copy(update={"start_from": _resolved(policy.start_from, "path")})
    files = "pretrained", "tokenizer", "backbone", "instruction"
    rewards = {name: _resolved(reward, *files) for name, reward in settings.rewards.items()}
    return settings.model_copy(update={"policy": policy, "rewards": rewards})


def _resolved(section: Section, *names: str) -> Section:
    """The section with absolute paths for those of the settings `names` that are local files or folders, for processes
    elsewhere."""
    given = {name: getattr(section, name) for name in names}
    there = {name: type(own)(os.path.realpath(own)) for name, own in given.items() if own and os.path.exists(own)}
    return section.model_copy(update=there)


def _found(path: Path, folder: Path = Path()) -> Path:
    """The file of a recipe: `path` from `folder`, or the shipped one of this name. Raises InputError for neither."""
    file = folder / os.path.expanduser(path)
    if os.path.isfile(file):
        return file
    if os.path.isdir(file) and not (SHIPPED / f"{path}.yaml").is_file():
        raise InputError(f"recipe {file} is a folder")
    return shipped_recipe(path.name if path.name == str(path) else str(file))


def shipped_recipe(name: str) -> Path:
    """The file of the shipped recipe of this name. Raises InputError, which says what was meant, if there is none."""
    names = sorted(recipe.stem for recipe in SHIPPED.glob("*.yaml"))
    if name in names:
        return SHIPPED / f"{name}.yaml"
    near = difflib.get_close_matches(Path(name).stem, names, n=1)
    hint = f"did you mean '{near[0]}'?" if near else "`branchgrpo recipes` lists those that go by their name"
    raise InputError(f"recipe {name} doesn't exist; {hint}")


def _recipe(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The settings in a recipe file, on top of those of its base. Raises InputError if the file isn't a recipe, or is
    its own base."""
    if path.resolve() in above:
        raise InputError(f"recipe {path} is its own base")
    content = read_sections(path, "recipe")
    base = content.pop("base", None)
    recipe = {} if base is None else _base(path, base, above)
    _lay(recipe, content, path)
    _locate_prompts(recipe, path.resolve().parent)
    return recipe


def read_sections(path: Path, kind: str) -> dict[str, Any]:
    """The settings in a YAML file as plain data. Raises InputError, naming the `kind` of file, if there are none."""
    try:
        content = read_yaml(decoded(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise InputError(f"{kind} {path} can't be read: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{kind} {path} doesn't hold settings ('key: value' lines)")
    return content


def _locate_prompts(recipe: dict[str, Any], folder: Path) -> None:
    """Have prompt files that are relative, of which no recipe below has located any, start in `folder`."""
    if isinstance(prompts := recipe.get("prompts"), dict):
        given = {name: prompts.get(name) for name in ("train", "held_out")}
        located = {
            name: str(folder / os.path.expanduser(source))
            for name, source in given.items()
            if isinstance(source, str) and source and not source.startswith(HUB)
        }
        recipe["prompts"] = prompts | located


def _lay(recipe: dict[str, Any], content: Mapping[str, Any], path: Path) -> None:
    """Replace settings of a recipe by those that the file at `path` gives."""
    given = {_described(key)[0] if isinstance(key, str) else (key,): value for key, value in content.items()}
    leaves = Counter(leaf for keys, value in given.items() for leaf in _leaves(keys, value))
    if twice := [keys for keys, count in leaves.items() if count > 1]:
        raise InputError(f"recipe {path} says '{_dotted(twice[0])}' twice")
    if ("rewards",) in given:
        _forget_pools(recipe, given["rewards",])
    for keys, value in given.items():
        _put(recipe, keys, value, merge=keys[0] not in WHOLE_RECIPE or len(keys) > 1)


def _base(path: Path, base: Any, above: tuple[Path, ...]) -> dict[str, Any]:
    """The settings of the base of the recipe `path`."""
    if not isinstance(base, str):
        raise InputError(f"base is {base!r} in recipe {path}; it must be another recipe's path or name")
    try:
        file = _found(Path(base), path.parent)
    except InputError as error:
        raise InputError(f"{error} (the base of {path})") from error
    return _recipe(file, (*above, path.resolve()))


def _parsed(override: str) -> tuple[Keys, Any]:
    """Keys and value of `key=value`. Raises InputError, naming the override, if it is none."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise InputError(f"'{override}' is no override; write key=value, such as iterations=10")
    keys, options = _described(key)
    if options and all(map(_is_text, options)):
        return keys, None if text == "null" and types.NoneType in options else text
    try:
        return keys, read_yaml(text)
    except ValueError as error:
        raise InputError(f"the value of '{override}' can't be read: {error}") from error


def _described(key: str) -> tuple[Keys, list[Any]]:
    """A dotted name's keys, and the types that its setting may have; none if there is no such setting."""
    keys: list[Any] = []
    options: list[Any] = [RunSettings]
    for name in key.split("."):
        sections = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel) and name in o.model_fields]
        tables = [get_args(option) for option in options if get_origin(option) is dict]
        inner = [_options(o.model_fields[name].annotation) for o in sections] + [_options(of) for _, of in tables]
        keys.append(int(name) if name.isdecimal() and any(of is int for of, _ in tables) else name)
        options = inner[0] if inner else []
    return tuple(keys), options


def _options(annotation: Any) -> list[Any]:
    """The types of which a setting's value has one."""
    if get_origin(annotation) is Annotated:
        return _options(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [option for argument in get_args(annotation) for option in _options(argument)]
    return [annotation]


def _is_text(option: Any) -> bool:
    named = get_origin(option) is Literal and all(isinstance(value, str) for value in get_args(option))
    return named or option in (str, Path, types.NoneType)


def _put(recipe: dict[str, Any], keys: Keys, value: Any, *, merge: bool = False) -> None:
    """Set one setting, where sections that aren't there are made. With `merge` a section adds to what is there."""
    section = recipe
    for depth, name in enumerate(keys[:-1], start=1):
        inner = section.get(name)
        if inner is not None and not isinstance(inner, dict):
            raise InputError(f"'{_dotted(keys)}' can't be set: {_dotted(keys[:depth])} is {shown(inner)}, no section")
        section[name] = section = dict(inner or {})
    section[keys[-1]] = _merged(section.get(keys[-1]), value) if merge else value


def _merged(base: Any, value: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(value, dict):
        return value
    return base | {key: _merged(base.get(key), inner) for key, inner in value.items()}


def _forget_pools(recipe: dict[str, Any], rewards: Any) -> None:
    """Remove the settings of reward pools, except those of `rewards`."""
    if isinstance(pools := recipe.get("pools"), dict) and isinstance(given := pools.get("rewards"), dict):
        kept = {name: pool for name, pool in given.items() if isinstance(rewards, dict) and name in rewards}
        recipe["pools"] = pools | {"rewards": kept}


def _leaves(keys: Keys, value: Any) -> Iterator[Keys]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves((*keys, key), inner)
    else:
        yield keys


def _dotted(keys: Keys) -> str:
    return ".".join(map(str, keys))


def imported(name: str, setting: str) -> Any:
    """The object that `module:attribute` names. Raises InputError, naming `setting`, if it can't be imported."""
    try:
        if ":" not in name:
            raise ValueError("there is no ':' in it")
        return pkgutil.resolve_name(name)
    except Exception as error:  # the module is run, and may raise anything
        plain = type(error) in (ImportError, ModuleNotFoundError, ValueError)
        reason = described(error) if is_users(error) else str(error) if plain else f"{type(error).__name__}: {error}"
        raise InputError(f"{setting} is '{name}', which can't be imported (module:name): {reason}") from error


def dump_recipe(settings: RunSettings) -> str:
    """All settings as YAML, from which `load_recipe` makes the same settings again."""
    return write_yaml(settings.model_dump())


def save_recipe(settings: RunSettings, folder: Path) -> Path:
    """Write `folder`/recipe.yaml with copies of the prompts and their pictures beside it, and return its path.

    `load_recipe` makes the same settings of it, also where the original files are not.
    """
    copies, given = {}, settings.prompts
    for name in ("train", "held_out"):
        if getattr(given, name):
            prompts = prompts_in(given, name, quiet=True)
            keep((picture for prompt in prompts for picture in prompt.pictures), folder / "prompts" / PICTURES)
            lines = not given.picture_column and all(prompt.isprintable() and not prompt.fields for prompt in prompts)
            copies[name] = Path("prompts", f"{name}.{'txt' if lines else 'jsonl'}")
            text = "".join(f"{prompt}\n" for prompt in prompts)
            text = text if lines else write_lines(prompts, given.column, given.picture_column)
            write_text(folder / copies[name], text)
    own = given.model_copy(update=copies)
    write_text(folder / "recipe.yaml", dump_recipe(settings.model_copy(update={"prompts": own})))
    return folder / "recipe.yaml"
