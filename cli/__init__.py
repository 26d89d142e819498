"""An operator's and a user's commands, and the local stack."""
