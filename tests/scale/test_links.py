"""Interconnects by name."""

from __future__ import annotations

import re

import pytest

from bnbench.scale.links import PRESETS, interconnect_named, link_named


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_what_it_is_and_where_it_is_from(name: str) -> None:
    preset = PRESETS[name]
    assert 0 < preset.link.alpha < 1e-3 and preset.link.beta > 1e8 and preset.link.call >= 0
    assert preset.what and preset.source
    assert link_named(name) == preset.link


def test_ports_side_by_side_multiply_the_rate_and_nothing_else() -> None:
    one, eight = link_named("ndr"), link_named("8xndr")
    assert eight.beta == 8 * one.beta
    assert (eight.alpha, eight.call) == (one.alpha, one.call)


def test_one_name_is_between_nodes_and_two_are_both() -> None:
    assert interconnect_named("hdr") == (None, link_named("hdr"))
    assert interconnect_named("nvlink4,8xndr") == (link_named("nvlink4"), link_named("8xndr"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nvlink9", "unknown --interconnect 'nvlink9'; known: nvlink3"),
        ("8xndd", "(did you mean ndr?)"),
        ("0xndr", "at least 1"),
        ("hdr,", "give BETWEEN, or WITHIN,BETWEEN"),
        ("a,b,c", "give BETWEEN, or WITHIN,BETWEEN"),
        ("", "give BETWEEN, or WITHIN,BETWEEN"),
    ],
)
def test_a_wrong_name_is_one_line(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        interconnect_named(text)
    assert "\n" not in str(caught.value)
