"""`rerail ledger`: where a job's wall clock went, as a table and as a picture."""
