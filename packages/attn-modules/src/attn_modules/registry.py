"""Mechanisms by name: registering them, and building one from a configuration."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from attn_modules.attention import Attention

if TYPE_CHECKING:
    from collections.abc import Callable

_Class = TypeVar("_Class", bound=type[Attention])

MECHANISMS: Final = {
    "big_bird": ("big_bird", "BigBirdAttention"),
    "blocksparse": ("block_sparse", "BlockSparseAttention"),
    "compositional": ("compositional", "CompositionalAttention"),
    "favor": ("favor", "FavorAttention"),
    "fourier_mix": ("fourier_mix", "FourierMix"),
    "global": ("global_tokens", "GlobalAttention"),
    "lambda": ("lambda_layer", "LambdaLayer"),
    "linear": ("linear", "LinearAttention"),
    "linformer": ("linformer", "LinformerAttention"),
    "local": ("local", "LocalAttention"),
    "nystrom": ("nystrom", "NystromAttention"),
    "orthoformer": ("orthoformer", "OrthoFormerAttention"),
    "pooling": ("pooling", "Pooling"),
    "random": ("random", "RandomAttention"),
    "scaled_dot_product": ("scaled_dot_product", "ScaledDotProduct"),
    "visual": ("visual", "Visual"),
}
"""Registered name -> (file in `mechanisms`, class) of this package's, imported when looked up."""


@dataclass(init=False)
class AttentionConfig:
    """What every mechanism is configured with; those of one mechanism have more fields.

    The configuration class of a mechanism has a field for each argument of its constructor and
    is found in `ATTENTION_REGISTRY[name].config`. None stands for the argument's default.

    Dataclasses made of this one may add fields without defaults, and then require `dropout` too;
    where `build_attention` makes them of a mapping, what is missing there is None.
    """

    name: str
    dropout: float | None

    # Written out, because a default of the field would forbid fields without one in subclasses.
    def __init__(self, name: str, dropout: float | None = None) -> None:
        self.name = name
        self.dropout = dropout


class Registered(NamedTuple):
    """A mechanism's class and that of its configuration."""

    constructor: type[Attention]
    config: type[AttentionConfig]


class _Registry(Mapping[str, Registered]):
    """Registered name -> mechanism; those of this package are imported when first looked up."""

    def __init__(self) -> None:
        self._registered: dict[str, Registered] = {}

    def __getitem__(self, name: str) -> Registered:
        if name not in self._registered and name in MECHANISMS:
            importlib.import_module(f"attn_modules.mechanisms.{MECHANISMS[name][0]}")
        return self._registered[name]

    def __contains__(self, name: object) -> bool:
        return name in MECHANISMS or name in self._registered

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(MECHANISMS.keys() | self._registered.keys()))

    def __len__(self) -> int:
        return len(MECHANISMS.keys() | self._registered.keys())

    def add(self, name: str, registered: Registered) -> None:
        """Register a mechanism; see `register_attention`."""
        constructor = registered.constructor
        own = (constructor.__module__.rpartition(".")[2], constructor.__name__)
        if name in self._registered or MECHANISMS.get(name, own) != own:
            raise ValueError(
                f"register_attention: expected a new name, got {name!r}, which names a mechanism "
                "already"
            )
        taken = {held.constructor.__name__ for held in self._registered.values()}
        taken |= {cls for other, (_, cls) in MECHANISMS.items() if other != name}
        if constructor.__name__ in taken:
            raise ValueError(
                "register_attention: expected a new class name, got "
                f"{constructor.__name__}, which is registered already"
            )
        self._registered[name] = registered


ATTENTION_REGISTRY = _Registry()
"""Registered name -> (constructor, config)."""


def register_attention(
    name: str, config: type[AttentionConfig] | None = None
) -> Callable[[_Class], _Class]:
    """Return a decorator that lets `build_attention` find a class of `Attention` as `name`.

    config: the dataclass of its configuration; default: one made of the constructor's arguments.
    Raises: ValueError if the name or the class's name is taken, or it is no `Attention`.
    """

    def register(constructor: _Class) -> _Class:
        if not (isinstance(constructor, type) and issubclass(constructor, Attention)):
            raise ValueError(  # noqa: TRY004  what xFormers raises
                f"register_attention: expected a subclass of Attention as {name!r}, got "
                f"{constructor!r}"
            )
        fields = _config_of(constructor) if config is None else config
        ATTENTION_REGISTRY.add(name, Registered(constructor, fields))
        return constructor

    return register


def build_attention(config: Mapping[str, Any] | AttentionConfig) -> Attention:
    """Make the mechanism that `config` describes.

    config: the registered `name` and the constructor's arguments, as a mapping or as an
        `AttentionConfig`; what is None or missing takes its default, and a dropout without one
        is 0.
    Raises: KeyError if there is no name, or nothing of that name; TypeError if `config` is
        something else, fields are unknown or required ones are missing.

    >>> build_attention({"name": "scaled_dot_product", "dropout": 0.1, "causal": True})
    ScaledDotProduct(dropout=0.1, causal=True)
    """
    constructor, config_class = ATTENTION_REGISTRY[_name_in(config)]
    if isinstance(config, Mapping):
        config = _config_from_mapping(config, config_class)
    return constructor.from_config(config)


def _name_in(config: Mapping[str, Any] | AttentionConfig) -> str:
    """Return the name in `config`, of a registered mechanism."""
    if not isinstance(config, Mapping | AttentionConfig):
        example = config if isinstance(config, str) else "local"
        raise TypeError(
            f"build_attention: expected a mapping such as {{'name': {example!r}}} or an "
            f"AttentionConfig, got {config!r}"
        )
    name: Any = config.get("name") if isinstance(config, Mapping) else config.name
    if not isinstance(name, str) or name not in ATTENTION_REGISTRY:
        got = "none" if name is None else repr(name)
        meant = _nearest([str(name)], ATTENTION_REGISTRY)
        meant = meant or f"; there are {', '.join(ATTENTION_REGISTRY)}"
        raise KeyError(
            f"build_attention: expected the name of a registered mechanism as 'name', got "
            f"{got}{meant}"
        )
    return name


def _config_from_mapping(
    mapping: Mapping[str, Any], config_class: type[AttentionConfig]
) -> AttentionConfig:
    """Return `mapping` as a configuration, where what is missing takes its default or None."""
    fields = [field for field in dataclasses.fields(config_class) if field.init]
    known = [field.name for field in fields]
    unknown = [field for field in mapping if field not in known]
    if unknown:
        name = mapping["name"]
        raise TypeError(
            f"build_attention: expected fields of {name!r}, which are {', '.join(known[1:])}, got "
            f"{', '.join(map(repr, unknown))}{_nearest(unknown, known)}; of a mapping that "
            f"mechanisms share, keep dataclasses.fields(ATTENTION_REGISTRY[{name!r}].config)"
        )
    values: dict[str, Any] = {
        field.name: None
        for field in fields
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    return config_class(**(values | dict(mapping)))


def _nearest(names: list[str], known: Iterable[str]) -> str:
    """Return a question for what is known and nearly one of `names`, or nothing."""
    known = list(known)
    near = [difflib.get_close_matches(name, known, n=1, cutoff=0.75) for name in names]
    found = dict.fromkeys(name for matches in near for name in matches)
    return f"; did you mean {', '.join(map(repr, found))}?" if found else ""


def _config_of(constructor: type[Attention]) -> type[AttentionConfig]:
    """Return a dataclass with a field for each argument of the constructor, None unless given."""
    arguments = inspect.signature(constructor).parameters.values()
    named = [p for p in arguments if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    fields = [("dropout", float | None, None)]
    fields += [(p.name, Any, None) for p in named if p.name != "dropout"]
    config = dataclasses.make_dataclass(
        f"{constructor.__name__}Config", fields, bases=(AttentionConfig,)
    )
    # Pickle finds a class by where it lies: this one as an attribute of its mechanism.
    config.__module__ = constructor.__module__
    config.__qualname__ = f"{constructor.__qualname__}.{config.__name__}"
    setattr(constructor, config.__name__, config)
    return config
