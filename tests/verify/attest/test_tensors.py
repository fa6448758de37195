"""Tensor files are read with numpy alone, to the last byte, and anything that is not finite is noticed."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from safetensors.torch import save

from verify.attest import AttestError
from verify.attest.tensors import Part, parse, served_parts

TENSORS = {
    "b": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "a": torch.tensor(2.5, dtype=torch.float64),
    "half": torch.ones(3, dtype=torch.float16),
    "brain": torch.ones(4, dtype=torch.bfloat16),
    "count": torch.arange(5),
    "flag": torch.tensor([True, False]),
    "none": torch.zeros(0, 4),
}


def test_names_types_shapes_and_bytes() -> None:
    found = parse(save(TENSORS, metadata={"format": "pt"}), "x.")
    assert [tensor.name for tensor in found] == sorted(f"x.{name}" for name in TENSORS)
    for stored in found:
        tensor = TENSORS[stored.name[2:]]
        raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        assert (stored.dtype, stored.shape) == (str(tensor.dtype)[6:], tuple(tensor.shape))
        assert (stored.sha256, stored.finite) == (hashlib.sha256(raw).hexdigest(), True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), -float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite(dtype: torch.dtype, value: float) -> None:
    big = torch.finfo(dtype).max
    (fine,) = parse(save({"w": torch.tensor([0.0, big, -big, torch.finfo(dtype).tiny], dtype=dtype)}))
    (bad,) = parse(save({"w": torch.tensor([1.0, 2.0, value], dtype=dtype)}))
    assert (fine.finite, bad.finite) == (True, False)


def test_every_kind_of_nan_in_16_bits_is_noticed() -> None:
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.uint16)
    for dtype in (torch.float16, torch.bfloat16):
        values = bits.view(dtype)
        expected = torch.isfinite(values.float()).tolist()
        raw = values.view(torch.uint8).numpy().tobytes()
        head = {"w": {"dtype": "F16" if dtype is torch.float16 else "BF16", "shape": [1], "data_offsets": [0, 2]}}
        text = json.dumps(head).encode()
        lead = len(text).to_bytes(8, "little") + text
        for i in (
            0,
            1,
            0x7BFF,
            0x7C00,
            0x7C01,
            0x7E00,
            0x7F7F,
            0x7F80,
            0x7F81,
            0x7FC0,
            0x7FFF,
            0x8000,
            0xFC00,
            0xFF80,
            0xFFFF,
        ):
            assert parse(lead + raw[2 * i : 2 * i + 2])[0].finite is expected[i], hex(i)


def made(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(start: int, stop: int, dtype: str = "F32", shape: tuple[int, ...] = (1,)) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff" * 8,
        made(b"{"),
        made([]),
        made({"w": 1}),
        made({"w": entry(0, 4)}),
        made({"w": entry(0, 4)}, bytes(5)),
        made({"w": entry(0, 3)}, bytes(3)),
        made({"w": entry(4, 8)}, bytes(8)),
        made({"w": entry(0, 4, "F7")}, bytes(4)),
        made({"v": entry(0, 4), "w": entry(0, 4)}, bytes(4)),
        made({"w": entry(0, 4, shape=(-1, -1))}, bytes(4))[:-1],
    ],
)
def test_damaged_files_are_refused(raw: bytes) -> None:
    with pytest.raises(AttestError, match="a file of tensors is damaged"):
        parse(raw)


def test_of_stages_that_continue_an_adapter_the_last_serves() -> None:
    stages = [{"adapter": "all", "kind": "lora"}] * 3
    chain = [("k0", "n0"), ("k1", "n1")]
    assert served_parts(stages, chain) == [
        Part("k0", "n0", "lora", body=False, head=False),
        Part("k1", "n1", "lora", body=True, head=True),
    ]
    assert served_parts([{"adapter": "full", "kind": "full"}], [("k", "n")])[0].files() == [
        ("model.safetensors", "adapter."),
        ("head.safetensors", "head."),
    ]
    blocks = [{"adapter": f"block-{i}", "kind": "lora"} for i in range(3)]
    assert [(part.body, part.head) for part in served_parts(blocks, chain)] == [(True, False), (True, True)]
