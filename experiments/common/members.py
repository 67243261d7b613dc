"""Members of the zoo from a config, their weights and what they are trained on."""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from experiments.common.keys import naming_group
from experiments.common.values import resolved
from netkin.data.images import Images, Part
from netkin.errors import UserError
from netkin.jobs.pool import Display
from netkin.store.layout import Store
from netkin.training.recipe import Recipe
from netkin.training.weights import Training, trained_members
from netkin.transfer.decode import unreadable_images
from netkin.transfer.setting import Setting
from netkin.zoo.member import Member, parse_members


def build_members(config: DictConfig, at_least: int = 2) -> list[Member]:
    """The zoo; see `netkin.zoo.member.parse_members` and `with_trained`."""
    model = resolved(config.model)
    if not isinstance(model["members"], list):
        raise UserError(f"model.members must be a list such as [test_vit], got {model['members']}")
    return parse_members(with_trained(config, model["members"]), model.get("known"), at_least)


def with_trained(config: DictConfig, entries: list[Any]) -> list[Any]:
    """Members with the names of trained models, such as digits/vit_ti@seed1 or digits/vit_ti@*,
    replaced by what the store notes of them."""
    dataset = config.dataset.name
    found: list[Any] = []
    for entry in entries:
        if isinstance(entry, str) and entry.startswith(f"{dataset}/"):
            store = Store(resolved(config.store)["dir"])
            found += trained_members(store, dataset, entry.removeprefix(f"{dataset}/"))
        else:
            found.append(entry)
    return found


def build_member(config: DictConfig, entry: Any) -> Member:
    """A model beside the members, named as one of them."""
    if OmegaConf.is_config(entry):
        entry = OmegaConf.to_container(entry, resolve=True)
    return parse_members([entry], resolved(config.model).get("known"), at_least=1)[0]


def one_member(config: DictConfig, name: Any, what: str) -> Member:
    """A member by name (a timm model, one of this zoo, or a trained one, `imagenet/NAME`), or by
    its fields, as one of `model.members`."""
    if isinstance(name, Mapping | DictConfig):
        return build_member(config, name)
    if not isinstance(name, str) or not name:
        known = ", ".join(config.model.get("known") or {})
        raise UserError(
            f"name a {what} with {what}=NAME: any timm name, a trained model such as "
            f"{config.dataset.name}/NAME, one of this zoo ({known}), or a mapping as in "
            f"model.members; got {name!r}"
        )
    entries = with_trained(config, [name])
    (member,) = parse_members(entries, resolved(config.model).get("known"), at_least=1)
    return member


def build_training(
    config: DictConfig, setting: Setting, members: list[Member], display: Display
) -> Training | None:
    """How members without weights get them; None where all bring their own."""
    task = setting.task
    if all(member.checkpoint or member.uses_published(task) for member in members):
        return None
    return Training(setting, training_images(config, display), build_recipe(config, "recipe"))


def build_recipe(config: DictConfig, key: str) -> Recipe:
    """The recipe at a key of the config, such as "recipe" or "recipes.teacher"."""
    group = OmegaConf.select(config, key)
    with naming_group(key, group):
        return Recipe(**resolved(group))


def training_images(config: DictConfig, display: Display) -> Images:
    """What models are trained on; with `dataset.on_error=skip` without what cannot be read."""
    images: Images = instantiate(config.dataset.train_images)
    if config.dataset.get("on_error") == "skip":
        bad = unreadable(images, range(len(images.ids)), "training images", display)
        kept = tuple(i for i, image in enumerate(images.ids) if image not in bad)
        images = Part(images, kept) if bad else images
    return images


def unreadable(
    images: Images, positions: Sequence[int], what: str, display: Display
) -> dict[str, str]:
    """Which of some images cannot be read: id to reason."""
    display.start("check", [what], len(positions))
    bad = unreadable_images(images, positions, lambda n: display.advance("check", n))
    display.end("check")
    return bad
