"""The commands, one file for each subject: its options and what it does."""
