"""The HTTP gateway: validate, start or ask a workflow, answer."""
