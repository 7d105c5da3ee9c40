"""What every floor may use: errors, shape checks, whole-file writes, seeds, progress, the two Lightning names."""
