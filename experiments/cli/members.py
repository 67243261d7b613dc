"""Members of the zoo from a config, their weights and what they are trained on."""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from experiments.cli.runs import open_store
from experiments.cli.values import construct, naming, naming_group, resolved
from netkin.data.images import Images, Part
from netkin.errors import UserError
from netkin.jobs.progress import Bars
from netkin.passes.decode import unreadable_images
from netkin.results import Results
from netkin.training.recipe import Recipe, check
from netkin.training.weights import Hardware, Training, trained_members
from netkin.zoo.execution import Execution
from netkin.zoo.member import Member
from netkin.zoo.parse import parse_members


def build_members(config: DictConfig, at_least: int = 2) -> list[Member]:
    """The members of a config; see `netkin.zoo.parse.parse_members` and `with_trained`."""
    model = resolved(config.model)
    if not isinstance(model["members"], list):
        raise UserError(
            f"model.members must be a list such as [test_vit,vit_ti], got {model['members']}"
        )
    with naming({"members": "model.members"}):
        return parse_members(with_trained(config, model["members"]), model.get("known"), at_least)


def with_trained(config: DictConfig, entries: list[Any]) -> list[Any]:
    """Entries of a list of members, in which the store's notes replace the names of trained models,
    such as digits/vit_ti@seed1 or digits/vit_ti@*."""
    dataset = config.dataset.name
    replaced: list[Any] = []
    for entry in entries:
        if isinstance(entry, str) and entry.startswith(f"{dataset}/"):
            name = entry.removeprefix(f"{dataset}/")
            replaced += trained_members(open_store(config), dataset, name)
        else:
            replaced.append(entry)
    return replaced


def one_member(config: DictConfig, given: Any, key: str) -> Member:
    """A model by name (timm's, one that model.known or model.members names, or a trained one,
    `imagenet/NAME`), or by its fields, as one of model.members; `key` names it in errors."""
    model = resolved(config.model)
    if not isinstance(given, str | DictConfig) or not given:
        raise UserError(
            f"name a {key} with {key}=NAME: any timm name, a trained model such as "
            f"{config.dataset.name}/NAME, one of this zoo ({', '.join(model.get('known') or {})}), "
            f"or a mapping as in model.members; got {given!r}"
        )
    entry = OmegaConf.to_container(given, resolve=True) if OmegaConf.is_config(given) else given
    listed = model["members"] if isinstance(model["members"], list) else []
    own = [m for m in listed if isinstance(m, Mapping) and m.get("name") == entry]
    entries = own or with_trained(config, [entry])
    if len(entries) > 1:
        raise UserError(f"{entry} stands for {len(entries)} trained models; name one of them")
    return parse_members(entries, model.get("known"), at_least=1)[0]


def build_training(
    config: DictConfig, results: Results, display: Bars, members: Sequence[Member]
) -> Training:
    """The training of members without weights. Where all have them the recipe is not tried: what
    they were trained with is compared."""
    images, task = training_images(config, display), results.evaluation.task
    own = [m for m in members if not (m.checkpoint or m.uses_published(task))]
    lacking = not all(results.store.weights(task.dataset, m.name).is_file() for m in own)
    recipe = build_recipe(config, "recipe", lacking)
    return Training(results, images, recipe, member_hardware(config))


def member_hardware(config: DictConfig) -> Hardware:
    """How evaluate.py trains members that lack weights: each in one process, on its device."""
    of = config.hardware
    return Hardware(
        accelerator=of.accelerator,
        precision=of.train_precision,
        compile=of.train_compile,
        memory_format=Execution.memory_format if of.memory_format == "auto" else of.memory_format,
    )


def build_recipe(config: DictConfig, key: str, tried: bool = True) -> Recipe:
    """The recipe at a key of the config, such as "recipe" or "recipes.teacher".

    It is `tried` whether timm makes its optimiser and schedule.

    Raises UserError that names the key of an unknown or unusable value.
    """
    values = OmegaConf.select(config, key)
    recipe = construct(Recipe, key, values)
    if tried:
        with naming_group(key, values):
            check(recipe)
    return recipe


def training_images(config: DictConfig, display: Bars) -> Images:
    """The training images; with `dataset.on_error=skip` without those that cannot be read."""
    with naming_group("dataset.train_images", config.dataset.train_images):
        images: Images = instantiate(config.dataset.train_images)
    if config.dataset.get("on_error") == "skip":
        bad = unreadable(images, range(len(images.ids)), "training images", display)
        readable = tuple(i for i, image in enumerate(images.ids) if image not in bad)
        images = Part(images, readable) if bad else images
    return images


def unreadable(
    images: Images, positions: Sequence[int], what: str, display: Bars
) -> dict[str, str]:
    """The images at some positions that cannot be read, id to reason, with a progress bar."""
    display.start("check", [what], len(positions))
    bad = unreadable_images(images, positions, lambda n: display.advance("check", n))
    display.end("check")
    return bad
