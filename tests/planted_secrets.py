"""Secrets that stand in the environment of the micro run, so that a test can look for them in all that it wrote."""

from __future__ import annotations

SECRETS = {
    "HF_TOKEN": "hf_PLANTEDhubtoken0123456789",
    "WANDB_API_KEY": "PLANTEDwandb0123456789",
    "AWS_ACCESS_KEY_ID": "AKIAPLANTED0123456789",
    "AWS_SECRET_ACCESS_KEY": "PLANTED/aws+secret0123456789",
    "AWS_SESSION_TOKEN": "PLANTEDaws/session==0123456789",
    "GITHUB_TOKEN": "ghp_PLANTEDgithub0123456789",
    "SOME_PASSWORD": "PLANTEDpassword",
}
