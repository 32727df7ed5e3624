"""What is done with an export: served over HTTP by a model server, chatted with, asked a file of prompts."""
