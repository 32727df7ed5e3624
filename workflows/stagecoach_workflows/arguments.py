"""The arguments of every task, with Argo's tags for what is known only when a task starts.

They hold names and safe tokens; what a user wrote (recipe and settings) goes to the plan alone, as one argument each.
"""

from __future__ import annotations

from stagecoach_workflows.pod import NOTIFY_PATH

PLAN = (
    "--store={{workflow.parameters.store}}",
    "--recipe-base64={{workflow.parameters.recipe}}",
    "--set={{workflow.parameters.set}}",
    "--run={{workflow.parameters.run}}",
    "--workflow={{workflow.name}}",
    "--created={{workflow.creationTimestamp.s}}",
    "--runner={{workflow.parameters.runner}}",
)

STAGE = (
    "--store={{workflow.parameters.store}}",
    "--run={{inputs.parameters.run-id}}",
    "--task={{inputs.parameters.task}}",
)

NOTIFY = (
    "--store={{workflow.parameters.store}}",
    "--run={{workflow.parameters.run}}",
    "--workflow={{workflow.name}}",
    "--created={{workflow.creationTimestamp.s}}",
    "--status={{workflow.status}}",
    "--namespace={{workflow.namespace}}",
    "--commit={{workflow.parameters.commit}}",
    f"--secrets={NOTIFY_PATH}",
)
