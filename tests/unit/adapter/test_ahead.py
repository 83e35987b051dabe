"""The Triton kernel, compiled for GPUs that this machine does not have, stays within their resources."""

import pytest

from codyra_llm.selfcheck.ahead import PRODUCTS, SHARED_BYTES, SPILLED_BYTES, compile_all

pytest.importorskip("triton")


@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_every_variant_fits(capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    rows = list(compile_all(capability))
    assert len(rows) == len(PRODUCTS) * 3 * 4
    for row in rows:
        assert 0 < row["shared bytes"] <= SHARED_BYTES[capability], row
        assert 0 < row["registers"] <= 255, row
        assert row["spilled bytes"] <= SPILLED_BYTES, row


def test_one_variant_of_each_product_fits() -> None:
    for product in PRODUCTS:
        row = next(compile_all(90, ("bf16",), (product,)))
        assert 0 < row["shared bytes"] <= SHARED_BYTES[90]
