"""The operator: core decides, shell acts."""
