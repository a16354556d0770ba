"""Whoever waits for a store is answered, whatever becomes of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from dpop_agent.agent.signers import Signer
from dpop_agent.config import PinSource, StoreConfig, TokenUri
from dpop_agent.errors import Locked, SignerFailed


def signer(folder: Path, pin_source: str) -> Signer:
    config = StoreConfig(
        name="work",
        type="pkcs11",
        env={},
        module=str(folder / "none.so"),
        uri=TokenUri(token="work"),
        pin_source=PinSource(pin_source),
    )
    return Signer(
        config,
        lock_file=str(folder / "lock"),
        starting=asyncio.Lock(),
        on_ready=lambda _signer: None,
    )


def test_a_store_that_was_closed_answers_at_once(tmp_path: Path) -> None:
    async def story() -> None:
        closed = signer(tmp_path, "keychain")
        await closed.close()
        with pytest.raises(SignerFailed, match="was closed"):
            await asyncio.wait_for(closed.ask("reserve", alg="ES256"), 1)

    asyncio.run(story())


def test_a_store_whose_pin_is_typed_starts_no_process_before_unlock(tmp_path: Path) -> None:
    async def story() -> None:
        locked = signer(tmp_path, "prompt")
        locked.start()
        assert (locked.state, locked.pid) == ("locked", None)
        with pytest.raises(Locked, match="wants its PIN"):
            await asyncio.wait_for(locked.ask("reserve", alg="ES256"), 1)

    asyncio.run(story())
