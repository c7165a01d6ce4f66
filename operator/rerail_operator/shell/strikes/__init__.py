"""What is held against nodes across jobs: kept in one ConfigMap, shown and cleared by `rerail nodes`."""
