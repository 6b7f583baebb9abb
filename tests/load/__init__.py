"""Load tests: ``python -m tests.load`` starts the service, lets Locust at it and says how it was."""
