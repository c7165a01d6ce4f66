"""The contract of Rerail. Imports nothing: contract.py travels inside the agent."""
