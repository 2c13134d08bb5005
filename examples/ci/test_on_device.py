# SPDX-License-Identifier: MIT
"""Tests of a model that has first passed its validation, on a board or on the host.

pytest test_on_device.py --bitnet-edge-model model.bte --bitnet-edge-device raspberry-pi-zero-2w
"""

from bitnet_edge import Model


def test_it_goes_on_as_a_play_does(validated_model: Model) -> None:
    generation = validated_model.generate("ROMEO:\n", max_tokens=40)
    assert generation.text().strip()
    assert len(generation.token_ids) == 40


def test_the_whole_process_stays_small(validated_model: Model) -> None:
    report = validated_model.memory_report()
    assert sum(report.planned.values()) <= report.budget
