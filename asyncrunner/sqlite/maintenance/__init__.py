"""Maintain the file of a store: check, repair, back up, restore and vacuum it."""
