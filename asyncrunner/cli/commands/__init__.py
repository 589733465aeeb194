"""The commands and their options, one file for each subject."""
