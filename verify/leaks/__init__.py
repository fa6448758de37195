"""Planted faults: the verifier's own test. No audit counts until it has rejected these (docs: VERIFICATION, "Planted leaks").

Each fault alters one step of the real system. The faulty system and its references both run the faulty code; the clean room
runs clean code. ``python -m verify leaks`` plants them in several settings, around several victims each, and prints which
check caught which. Each is planted in every mode (``--engine``, ``--precision``), in those for images around records that
are images; where a step is another one in the fast
engine, the fault has a form for each engine and patches both.

To add one, write the faulty step as a subclass of the class that it alters (``Builder``, ``Serving``, ``Facts``, or
``Planted`` for the system itself), with a docstring that says why a real system falls into it, and put a ``Leak`` with the
checks that must catch it into the ``LEAKS`` of its module::

    class Rounded(Builder):
        \"\"\"Adapters are stored in half precision to save disk; what was served before a restart was not.\"\"\"

        def files(self, stage, trained, reads):
            half = {name: tensor.half().float() for name, tensor in trained.adapter.items()}
            return super().files(stage, dataclasses.replace(trained, adapter=half), reads)

    Leak(54, "rounded on disk", "numerics", planted(Rounded), (CLEANROOM,), blind="E1b: the reference rounds as well")

``python -m verify leaks --leak 54 --full`` then says in which places which check sees it.
"""

from __future__ import annotations

from verify.leaks import analytic, batching, data, layers, memory, served
from verify.leaks.bench import CLEAN, Bench
from verify.leaks.leak import CHECKS, NOT_PLANTED, Leak, Planted

LEAKS: tuple[Leak, ...] = tuple(
    sorted(
        (*analytic.LEAKS, *data.LEAKS, *batching.LEAKS, *layers.LEAKS, *memory.LEAKS, *served.LEAKS),
        key=lambda leak: leak.number,
    )
)
"""Every planted fault, by number."""

__all__ = ["CHECKS", "CLEAN", "LEAKS", "NOT_PLANTED", "Bench", "Leak", "Planted"]
