"""What a cluster says is shown as text, whatever characters it holds."""

from __future__ import annotations

import pytest

from stagecoach_workflows.cli.following import show_state
from stagecoach_workflows.workflow_state import WorkflowState


def test_marks_of_direction_and_control_characters_in_a_message_are_spelled_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    message = "exit 1\u202e\x1b[2J"
    show_state(WorkflowState(name="wf", run_id="r", phase="Failed", message=message, started="", finished="", nodes=()))
    assert "wf: Failed exit 1\\u202e\\x1b[2J" in capsys.readouterr().out
