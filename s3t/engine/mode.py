"""How a run computes: which engine, in which precision. A run's kernel names it, so it is part of every node's key. No torch.

``reference`` is kernel 2 of docs/DERIVATION.md: PEFT, all layers, float32. ``fast`` is kernel fast-2 (docs/ENGINE.md),
``graphs`` the same with steps that are recorded once and replayed as CUDA graphs, ``grouped`` with several nodes in a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from s3t.errors import RecipeError, did_you_mean

Engine = Literal["reference", "fast"]
Precision = Literal["float32", "bfloat16"]
Form = Literal["plain", "graphs", "grouped"]
"""How the fast engine takes its steps: one by one, recorded once and replayed, or for a group of nodes at once."""
REFERENCE = "2"
"""Version of the numerics in s3t/training.py. Raise it with every change that can move a bit."""
FAST = "fast-2"
"""The same for the fast engine; the precision follows after a colon, and a form other than plain after another."""
FORMS: tuple[Form, ...] = get_args(Form)[1:]
"""Forms that a user asks for as engines: for models whose records are all of one length."""
GROUP = 8
"""Places in a group of nodes: part of the kernel's version, for what a product computes may depend on how many there are."""
ENGINES = (*get_args(Engine), *FORMS)
"""What a user may ask for."""


@dataclass(frozen=True)
class Mode:
    """An engine and its precision: the type of activations and frozen weights; what is trained stays in float32.

    ``form``: how the fast engine takes its steps (:mod:`s3t.engine.steps`, :mod:`s3t.engine.grouped`). Raises RecipeError for
    an unknown word, and for a reference engine in anything but float32 or in another form than plain.
    """

    engine: Engine = "reference"
    precision: Precision = "float32"
    form: Form = "plain"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("engine", self.engine, get_args(Engine)),
            ("precision", self.precision, get_args(Precision)),
            ("form", self.form, get_args(Form)),
        ):
            if value not in known:
                raise RecipeError(
                    f"{name}={value!r} is unknown{did_you_mean(value, known)}; choose from {', '.join(known)}"
                )
        if self.engine == "reference" and self.precision != "float32":
            raise RecipeError(f"the reference engine computes in float32, not {self.precision}; choose engine=fast")
        if self.engine == "reference" and self.form != "plain":
            raise RecipeError(f"the reference engine takes steps one by one; choose engine={self.form}")

    @property
    def name(self) -> str:
        """What a user asks for to get this mode, and what environments of nodes say: one of ``ENGINES``."""
        return self.engine if self.form == "plain" else self.form

    @property
    def kernel(self) -> str:
        """The kernel's name as runs state it: ``2``, ``fast-2:bfloat16``, or ``fast-2:bfloat16:graphs``."""
        if self.engine == "reference":
            return REFERENCE
        return f"{FAST}:{self.precision}" if self.form == "plain" else f"{FAST}:{self.precision}:{self.form}"

    @classmethod
    def of(cls, kernel: str) -> Mode | None:
        """Return the mode whose kernel has this name, or None if this version has no such kernel."""
        return next((mode for mode in (*MODES, *FOR_IMAGES) if mode.kernel == kernel), None)

    @classmethod
    def recorded(cls, environment: Mapping[str, Any]) -> Mode:
        """Return the mode of a node's recorded environment; the reference if it names none that is known here."""
        said = environment.get("engine"), environment.get("dtype")
        return next((mode for mode in (*MODES, *FOR_IMAGES) if (mode.name, mode.precision) == said), cls())


MODES = (Mode(), Mode("fast", "float32"), Mode("fast", "bfloat16"))
"""The modes that run any model that their engine knows, on any device."""
FOR_IMAGES = tuple(Mode("fast", precision, form) for form in FORMS for precision in get_args(Precision))
"""The modes for models whose records are all of one length."""


def choose(engine: str, precision: str) -> Mode:
    """Return the mode for an engine and a precision; ``auto``: bfloat16 for the fast engine where the machine has units
    for it (AMX or AVX-512 BF16, or a GPU of compute capability 8 or more), else float32. RecipeError for an unknown word.
    """
    if engine not in ENGINES:
        raise RecipeError(
            f"engine={engine!r} is unknown{did_you_mean(engine, ENGINES)}; choose from {', '.join(ENGINES)}"
        )
    form = next((form for form in FORMS if form == engine), "plain")
    engine = engine if form == "plain" else "fast"
    if precision == "auto":
        precision = "bfloat16" if engine == "fast" and _has_bfloat16() else "float32"
    return Mode(engine, precision, form)  # type: ignore[arg-type]


def _has_bfloat16() -> bool:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_capability() >= (8, 0)
    asked = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return any(supported() for supported in asked if supported)
