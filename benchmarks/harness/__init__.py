"""What all questions share: measure, describe the machine, keep figures with their targets, write and plot results."""
