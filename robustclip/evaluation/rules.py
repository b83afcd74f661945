"""What a protocol says, as frozen values: Protocol, and SetRule for what it says of one of its sets."""

from dataclasses import dataclass, replace
from typing import Any

from robustclip.attacks import Attack, Universal
from robustclip.attacks.levels import Aimed
from robustclip.attacks.multimodal import GuidedCoAttack, Multimodal
from robustclip.attacks.shift import Shifted
from robustclip.base.errors import UserError
from robustclip.base.ranges import COUNT, PIXELS, SEED, check_fields
from robustclip.base.threat import Ball
from robustclip.data.variants import base_of
from robustclip.models.class_texts import Descriptions

LEVELS = ("white-box", "grey-box A0", "grey-box A1")  # what was attacked: the scored model, plain CLIP, the model before it adapts
INTERPOLATIONS = ("bicubic", "bilinear")


@dataclass(frozen=True)
class SetRule:
    """What a protocol says of the set `name`; what is None or empty is left to the set's card and to the protocol.

    `split` is scored. `classes` and `images` are what it must have (images: the whole split). `templates` are its prompts, or descriptions
    of its classes. `class_names` are in label order. `native`: attacked as stored, squares of that side in pixels, and enlarged inside the
    model. `skips` names attacks that are not run on it.
    """

    name: str
    split: str = "test"
    classes: int | None = None
    images: int | None = None
    templates: tuple[str, ...] | Descriptions = ()
    class_names: tuple[str, ...] = ()
    native: int | None = None
    skips: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self, f"the rule of the set {self.name}: ", classes=COUNT, images=COUNT, native=PIXELS)


@dataclass(frozen=True)
class Protocol:
    """Data sets x attacks x eps x sample ids x averaging x attacker level.

    `n` images of every set's split (None: all), chosen evenly over classes by a hash of their ids, and of them the first `attacked` are
    attacked (None: all); `eps` in 1/255, ascending; attacks from cheap to dear: each meets only the images that survived the earlier ones
    and the smaller eps, or, `independent`, every image at every eps. Images are scaled to `resize` (shorter side) and cropped to `crop`
    pixels before the attack (None: the model's size, and sets stored as squares of at most that size as they are). Work is done in
    micro-batches of one fixed size, the last one padded, because a matrix product may round differently in batches of another size.
    Raises UserError for values that contradict.
    """

    name: str
    sets: tuple[str, ...]
    attacks: tuple[Attack, ...]
    eps: tuple[float, ...]
    n: int | None = 100
    norm: str = "Linf"
    level: str = "white-box"
    averaging: str = "mean over sets"
    real: tuple[str, ...] = ()
    seed: int = 0
    render_seed: int = 0
    resize: int | None = None
    micro_batch: int = 20
    crop: int | None = None
    interpolation: str = "bicubic"
    attacked: int | None = None
    independent: bool = False
    rules: tuple[SetRule, ...] = ()

    def __post_init__(self) -> None:
        counts = {"n": COUNT, "attacked": COUNT, "micro_batch": COUNT, "resize": PIXELS, "crop": PIXELS, "seed": SEED, "render_seed": SEED}
        check_fields(self, f"protocol {self.name}: ", **counts)
        if not self.sets or not self.attacks:
            raise self._wrong("it needs at least one data set and one attack")
        names = [attack.name for attack in self.attacks]
        if len(set(names)) < len(names):
            raise self._wrong(f"two attacks have one name in {', '.join(names)}")
        if len(set(self.sets)) < len(self.sets) or len({rule.name for rule in self.rules}) < len(self.rules):
            raise self._wrong(f"a set or its rule stands twice in {', '.join(self.sets)}")
        if self.apart and not self.independent:
            raise self._wrong(f"{self.apart[0]} is no part of a worst case: it needs independent attacks")
        if len(self.apart) == len(self.attacks):
            raise self._wrong(f"{self.apart[0]} is no part of a worst case: add an attack that is")
        if list(self.eps) != sorted(set(self.eps)) or any(ball.eps == 0 for ball in self.balls()):
            raise self._wrong(f"eps must be positive and ascending, not {self.eps}")
        if self.level not in LEVELS or self.interpolation not in INTERPOLATIONS:
            raise self._wrong(f"level {self.level!r}, interpolation {self.interpolation!r}; there are {', '.join(LEVELS + INTERPOLATIONS)}")
        if self.crop and self.resize and self.resize < self.crop:
            raise self._wrong(f"a crop of {self.crop} px does not fit into images resized to {self.resize} px")
        for name in self.sets:
            rewriting = [attack.name for attack in self.attacks_on(name) if isinstance(attack, Multimodal)]
            if rewriting and isinstance(self.rule(name).templates, Descriptions):
                raise self._wrong(f"{rewriting[0]} rewrites names in templates, and the classes of {name!r} are described: leave one out")
            if not self.attacks_on(name):
                raise self._wrong(f"no attack is left for the set {name!r}, which skips {', '.join(self.rule(name).skips)}")

    def _wrong(self, what: str) -> UserError:
        return UserError(f"protocol {self.name}: {what}")

    def balls(self) -> tuple[Ball, ...]:
        """Return the threat models of its eps, ascending."""
        return tuple(Ball(self.norm, eps) for eps in self.eps)  # type: ignore[arg-type]

    @property
    def guided(self) -> bool:
        """Whether some attack on the prompts looks at images of the classes."""
        return any(isinstance(attack, GuidedCoAttack) for attack in self.attacks)

    @property
    def oblivious(self) -> bool:
        """Whether some attack is made on plain CLIP."""
        return any(isinstance(attack, Aimed) and attack.level == "A0" for attack in self.attacks)

    @property
    def shifted(self) -> bool:
        """Whether some attack sees the classes under other texts than are scored."""
        return any(isinstance(attack, Shifted) for attack in self.attacks)

    @property
    def apart(self) -> tuple[str, ...]:
        """The names of the attacks whose numbers are shown but never part of a worst case."""
        return tuple(attack.name for attack in self.attacks if isinstance(attack, Multimodal | Shifted) and attack.apart)

    def changed(self, **changes: Any) -> "Protocol":
        """Return this protocol with other fields and a name that says so; what is empty changes nothing, 0 does."""
        wanted: dict[str, Any] = {
            field: value for field, value in changes.items() if value or (isinstance(value, int) and value is not False)
        }
        return replace(self, **wanted, name=f"{self.name} (changed)") if wanted else self

    def rule(self, name: str) -> SetRule:
        """Return what it says of a set; of one that is another looked at otherwise, if nothing else, what it says of that one."""
        said = {rule.name: rule for rule in self.rules}
        return said.get(name) or replace(said.get(base_of(name), SetRule(name)), name=name)

    def attacks_on(self, name: str) -> tuple[Attack, ...]:
        """Return the attacks that are run on a set."""
        return tuple(attack for attack in self.attacks if attack.name not in self.rule(name).skips)

    def universal_on(self, name: str) -> tuple[Universal, ...]:
        """Return the perturbations among them that are learned on other images of the set than the scored ones."""
        inner = (attack.attack if isinstance(attack, Aimed) else attack for attack in self.attacks_on(name))
        return tuple(attack for attack in inner if isinstance(attack, Universal))
