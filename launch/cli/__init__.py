"""What the commands share: errors, flags of models and hosts, progress."""
