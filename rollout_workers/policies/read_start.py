"""Reads what a recipe's `policy.start_from` names: networks that were trained before, or a LoRA."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from ...proto.checkpoint_files import EMA, LEARNER, WEIGHTS
from ...proto.errors import InputError
from ...proto.recipe import load_recipe
from ...proto.settings import StartSettings
from .folder import Part, StoredTensor, read_headers, read_json, weight_files
from .read_lora import Published, checkpoint_lora, foreign_lora
from .start import Start
from .weights import check_dtypes, check_part, compare, explain, one_line, without_numbers


class StartReader:
    """Reads starts for one pipeline."""

    def __init__(self, published: Published) -> None:
        self._published = published

    def read(self, settings: StartSettings) -> Start:
        """Raises InputError for what isn't there, can't be read, or doesn't fit the networks."""
        try:
            return self._read(settings)
        except InputError as error:
            raise InputError(f"policy.start_from.path is '{settings.path}': {error}") from error
        except Exception as error:  # of a library, over files of whatever kind
            raise InputError(
                f"policy.start_from.path is '{settings.path}', which can't be loaded: {one_line(error)}"
            ) from error

    def _read(self, settings: StartSettings) -> Start:
        path = Path(settings.path)
        if not path.exists():
            raise InputError("it isn't there")
        start = Start()
        if (path / LEARNER).is_file():  # a checkpoint of a run
            recipe = load_recipe(path.parents[1] / "recipe.yaml")
            file = path / (EMA if settings.ema else WEIGHTS)
            if not file.is_file():
                raise InputError("it holds no averaged weights; leave out ema" if settings.ema else f"no {file.name}")
            if recipe.learner.lora is None:
                self._refuse_to_train(settings)
                self._replace_all(start, self._of_checkpoint(file))
                return start
            before = recipe.policy.start_from
            if before and before.lora == "merge":
                start = self.read(before)
            adapted = checkpoint_lora(self._published, file, recipe.learner.lora)
        elif folders := self._network_folders(path):
            self._refuse_to_train(settings)
            self._replace_all(start, self._of_folders(folders))
            return start
        else:
            adapted = foreign_lora(self._published, path)
        if settings.lora == "train":
            start.adapters = adapted
        else:
            start.merge(adapted)
        return start

    def _refuse_to_train(self, settings: StartSettings) -> None:
        """Raises InputError if what is no LoRA should be trained further as one."""
        if settings.lora == "train":
            raise InputError("it is no LoRA, which policy.start_from.lora 'train' needs")

    def _network_folders(self, path: Path) -> dict[str, Path]:
        """Network -> its folder, if `path` holds folders of networks, or is one."""
        if len(self._published.networks) == 1 and (path / "config.json").is_file():
            return dict.fromkeys(self._published.networks, path)
        folders = {name: path / name for name in self._published.networks}
        there = [name for name, folder in folders.items() if folder.is_dir()]
        if there and len(there) < len(folders):
            raise InputError(f"it holds {there[0]}, and not all of {', '.join(folders)}, which this model has")
        return folders if there else {}

    def _of_folders(self, folders: Mapping[str, Path]) -> Iterator[tuple[str, dict[str, StoredTensor], dict[str, str]]]:
        for name, folder in folders.items():
            own, base = read_json(folder / "config.json").get("_class_name"), self._published.networks[name]
            if own != base.class_name:
                raise InputError(f"{folder} is a {own}, and policy.pretrained has a {base.class_name}")
            part = Part(name, "diffusers", base.class_name, folder)
            check_part(part)
            stored = read_headers(weight_files(part))
            yield name, stored, {tensor: tensor for tensor in stored}

    def _of_checkpoint(self, file: Path) -> Iterator[tuple[str, dict[str, StoredTensor], dict[str, str]]]:
        stored = read_headers([file])
        for name in self._published.networks:
            prefix = self._published.prefixes.get(name, "")
            names = {tensor.removeprefix(prefix): tensor for tensor in stored if tensor.startswith(prefix)}
            yield name, stored, names

    def _replace_all(
        self, start: Start, networks: Iterator[tuple[str, dict[str, StoredTensor], dict[str, str]]]
    ) -> None:
        """Take the weights of whole networks, whose names are keys and those in the files values."""
        for name, stored, names in networks:
            part = self._published.networks[name]
            model = without_numbers(part)
            own = {tensor: stored[there] for tensor, there in names.items()}
            check_dtypes(own)
            buffers = dict(model.named_buffers())
            expected = {**dict(model.named_parameters()), **{b: buffers[b] for b in buffers.keys() & own.keys()}}
            differences = compare(expected, {tensor: place.shape for tensor, place in own.items()})
            explain(part.class_name, own, *differences, next(iter(stored.values())).file.parent)
            start.replace(name, {tensor: (stored[there].file, there) for tensor, there in names.items()})
