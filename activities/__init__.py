"""The steps: one module per outside system, each step a method that may run twice without harm."""
