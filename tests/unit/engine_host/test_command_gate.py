import pytest

from openmint.engines.protocol import CommandStamp
from openmint.errors import StaleEpoch
from openmint_engine_host.command_gate import CommandGate


def test_an_older_epoch_is_refused():
    gate = CommandGate()
    gate.check(CommandStamp(epoch=3, command=1))
    with pytest.raises(StaleEpoch):
        gate.check(CommandStamp(epoch=2, command=99))


def test_the_last_command_is_the_one_below_the_oldest_that_still_runs():
    gate = CommandGate()
    with gate.applying(CommandStamp(1, 5)):
        with gate.applying(CommandStamp(1, 6)):
            pass
        assert gate.last_command == 4
    assert gate.last_command == 6


def test_a_failed_command_counts_as_applied():
    gate = CommandGate()
    with pytest.raises(ValueError, match="refused"), gate.applying(CommandStamp(1, 5)):
        raise ValueError("refused")
    assert gate.last_command == 5


def test_a_new_leader_starts_its_own_numbers():
    gate = CommandGate()
    with gate.applying(CommandStamp(1, 500)):
        pass
    with gate.applying(CommandStamp(2, 1)):
        pass
    assert gate.last_command == 1


def test_a_command_that_outlives_its_leader_changes_no_number():
    gate = CommandGate()
    with gate.applying(CommandStamp(1, 500)):
        gate.check(CommandStamp(2, 1))
    assert gate.last_command == 0
