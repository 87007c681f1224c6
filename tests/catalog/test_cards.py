"""Cards by the names of users, data sheets and drivers."""

from __future__ import annotations

import pytest

from appliance.catalog.cards import cards, find_card
from appliance.errors import UsageError

DRIVERS = {
    "NVIDIA H100 80GB HBM3": "H100 SXM 80GB",
    "NVIDIA H100 PCIe": "H100 PCIe 80GB",
    "NVIDIA H100 NVL": "H100 NVL 94GB",
    "NVIDIA H200": "H200 SXM 141GB",
    "NVIDIA H20": "H20 96GB",
    "NVIDIA B200": "B200 SXM 180GB",
    "NVIDIA B300 SXM6 AC": "B300 SXM 288GB",
    "NVIDIA A100-SXM4-80GB": "A100 SXM 80GB",
    "NVIDIA A100-SXM4-40GB": "A100 SXM 40GB",
    "NVIDIA A100 80GB PCIe": "A100 PCIe 80GB",
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": "RTX PRO 6000 Blackwell Workstation",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "RTX PRO 6000 Blackwell Server",
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition": "RTX PRO 6000 Blackwell Max-Q",
    "NVIDIA RTX PRO 5000 Blackwell": "RTX PRO 5000 Blackwell",
    "NVIDIA RTX 6000 Ada Generation": "RTX 6000 Ada",
    "NVIDIA RTX A6000": "RTX A6000",
    "NVIDIA GeForce RTX 5090": "RTX 5090",
    "NVIDIA GeForce RTX 4090": "RTX 4090",
    "NVIDIA GeForce RTX 3090 Ti": "RTX 3090",
    "NVIDIA L40S": "L40S",
    "NVIDIA L4": "L4",
    "NVIDIA A10G": "A10",
    "NVIDIA GB10": "DGX Spark GB10",
    "AMD Instinct MI300X": "MI300X",
    "AMD Radeon PRO W7900": "Radeon PRO W7900",
}


@pytest.mark.parametrize(("printed", "card"), DRIVERS.items())
def test_a_card_is_found_by_the_name_that_its_driver_prints(printed: str, card: str) -> None:
    assert find_card(printed).name == card


@pytest.mark.parametrize("name", [name for card in cards().values() for name in (card.name, *card.aliases)])
def test_a_name_of_the_catalog_matches_one_card(name: str) -> None:
    assert name in {find_card(name).name, *find_card(name).aliases}


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA A100-PCIE-40GB",
        "NVIDIA H200 NVL",
        "NVIDIA H100 80GB HBM2e",
        "H100 H100",
        "80GB",
        "SXM",
        "NVIDIA",
        "",
    ],
)
def test_a_card_outside_the_catalog_is_not_taken_for_a_similar_one(name: str) -> None:
    with pytest.raises(UsageError, match="is not in the catalog"):
        find_card(name)


def test_the_error_for_an_unknown_card_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'RTX 5090'"):
        find_card("RTX 5091")
