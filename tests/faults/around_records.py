"""What the agent has around its records, over stores of the tests' own, put together as it does."""

from __future__ import annotations

from typing import cast

from dpop_agent.agent.background import Background
from dpop_agent.agent.inventory import Inventory
from dpop_agent.agent.lifecycle import Lifecycle
from dpop_agent.agent.making import Making
from dpop_agent.agent.records import Records
from dpop_agent.agent.signers import Signer, Signers
from dpop_agent.agent.trails import Trails
from dpop_agent.agent.upkeep import Upkeep


class AroundRecords:
    """The verbs and the upkeep of these records' keys; stores by name."""

    def __init__(self, records: Records, **stores: object) -> None:
        self.signers = signers = Signers(
            {name: cast("Signer", store) for name, store in stores.items()}
        )
        background = Background()
        self.inventory = inventory = Inventory(records, signers)
        self.making = Making(records, signers, inventory, background)
        self.lifecycle = Lifecycle(records, signers, inventory, self.making, background)
        self.trails = Trails(records, mode="on", max_bytes=2**20)
        self.upkeep = Upkeep(records, self.making, inventory, background, self.trails)
